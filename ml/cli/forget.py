"""`tips forget`: delete one user's data."""

from typing import Annotated

import typer

from ml.cli.stores import with_tip_store
from ml.features import online_store
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings


def forget(user: Annotated[str, typer.Argument(help="The user_id that the caller sent.")]) -> None:
    """Delete all data of one user, also in the store of ONLINE_STORE_URL."""
    tips = with_tip_store(lambda store: store.forget(user))
    if url := ServingSettings.from_environment().online_store_url:
        try:
            online_store.forget_user(url, user)
        except online_store.OnlineStoreUnavailable as error:
            raise ConfigurationError(f"ONLINE_STORE_URL: the file {error}; {tips} tips are removed.") from None
    print(f"removed: {tips} tips")
