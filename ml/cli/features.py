"""`tips features`: compute the users' aggregates."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ml.cli.progress import counted
from ml.cli.stores import database_name, exposure_reported, with_tip_store
from ml.features import online_store
from ml.platform.clock import utc_now
from ml.platform.settings import ConfigurationError
from ml.serving.settings import ServingSettings

if TYPE_CHECKING:
    from ml.store.tips import TipStore


def features() -> None:
    """Compute the aggregates of each user and write them to the store of ONLINE_STORE_URL; run it every day."""
    url = ServingSettings.from_environment().online_store_url
    if not url:
        raise ConfigurationError("ONLINE_STORE_URL: must name the store to write, such as sqlite:///features.db.")
    now, seen_only = utc_now(), exposure_reported()

    async def compute(store: "TipStore") -> list[tuple[str, Mapping[str, float]]]:
        aggregates = store.user_aggregates(now, seen_only=seen_only)
        return [of_user async for of_user in counted("Computing users' aggregates", aggregates)]

    aggregates = with_tip_store(compute)
    try:
        users = online_store.replace_all(url, aggregates, now)
    except online_store.OnlineStoreUnavailable as error:
        raise ConfigurationError(f"ONLINE_STORE_URL: {error}.") from None
    print(f"written: {users:,} users of {database_name()} to {online_store.store_name(url)}")
