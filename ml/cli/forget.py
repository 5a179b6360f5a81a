"""`tips forget`: delete one user's data."""

import sys
from typing import Annotated

import typer

from ml.cli.stores import database_name, with_tip_store
from ml.features import online_store
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings


def forget(user: Annotated[str, typer.Argument(help="The user_id that the caller sent.")]) -> None:
    """Delete all data of one user, also in the store of ONLINE_STORE_URL; fail if there is none."""
    database, url = database_name(), ServingSettings.from_environment().online_store_url
    aggregates = 0
    try:
        if url:  # first: if its file is the wrong one, no tips are removed either
            aggregates = online_store.forget_user(url, user)
    except online_store.OnlineStoreUnavailable as error:
        raise ConfigurationError(f"ONLINE_STORE_URL: {error}; nothing is removed.") from None
    tips = with_tip_store(lambda store: store.forget(user))
    if not (tips or aggregates):
        stores = f"{database} or {online_store.store_name(url)}" if url else database
        sys.exit(f"There is no data of the user {user!r} in {stores}.")
    print(f"removed: {tips:,} tips from {database}")
    if url:
        print(f"removed: {aggregates:,} aggregates from {online_store.store_name(url)}")
