"""`tips forget`: delete one user's data."""

import sys
from typing import Annotated

import typer

from ml.cli.stores import database_name, database_url, deleting_offline, existing_offline_store, with_tip_store
from ml.features import online_store
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings


def forget(user: Annotated[str, typer.Argument(help="The user_id that the caller sent.")]) -> None:
    """Delete all data of one user, also in the stores of ONLINE_STORE_URL and OFFLINE_STORE; fail if there is none."""
    database, url = database_name(), ServingSettings.from_environment().online_store_url
    offline = existing_offline_store()  # first: if it cannot be opened, nothing is removed
    aggregates = rows = 0
    try:
        if url:  # first: if its file is the wrong one, no tips are removed either
            aggregates = online_store.forget_user(url, user)
    except online_store.OnlineStoreUnavailable as error:
        raise ConfigurationError(f"ONLINE_STORE_URL: {error}; nothing is removed.") from None
    tips = with_tip_store(lambda store: store.forget(user))
    if offline:
        with deleting_offline(database):
            from ml.pipelines import deletion  # the driver of the database is in an extra

            rows = deletion.forget_user(database_url(), offline, user)
    if not (tips or aggregates or rows):
        stores = [database, *([online_store.store_name(url)] if url else ()), *([offline.url] if offline else ())]
        sys.exit(f"There is no data of the user {user!r} in {' or '.join(stores)}.")
    print(f"removed: {tips:,} tips from {database}")
    if url:
        print(f"removed: {aggregates:,} aggregates from {online_store.store_name(url)}")
    if offline:
        print(f"removed: {rows:,} rows from {offline.url}")
