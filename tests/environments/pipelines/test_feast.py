"""A plain `feast.FeatureStore` and this project read the same aggregates, whichever of the two wrote them."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
import yaml
from feast import FeatureStore
from feast.infra.online_stores.redis import RedisOnlineStore
from pyarrow import fs

from ml.features.definitions import AGGREGATES
from ml.features.feast import FEATURE_SERVICE, FOLDER, FeastUnavailable, apply_definitions
from ml.features.feast_layout import feature_view, user_key
from ml.features.offline_store import OfflineStore, day_of_date, start_of_day
from ml.features.online_store import replace_all
from ml.pipelines.aggregates import CountedTips, write_decision_aggregates
from ml.pipelines.aggregates import write_snapshots as write_snapshots_of_days
from tests.online_stores import read_user
from tests.pipelines.offline_tips import FIRST_DAY, random_tips, write_tips
from tests.process import TIPS, run

pytestmark = [
    # Of Feast itself and of the libraries that it uses.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:feast"),
]

Values = Mapping[str, float]

SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("computed_at", pa.timestamp("us", "UTC")),
        *((name, pa.float64()) for name in AGGREGATES),
    ]
)
TODAY = day_of_date(datetime.now(UTC).date())
NOW = start_of_day(TODAY) + timedelta(hours=1)


def user(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def write_snapshots(offline: OfflineStore, days: Mapping[int, Mapping[str, Values]]) -> None:
    """Write the aggregates of users as of the end of each day."""
    for day, users in days.items():
        rows = [
            {"user_id": user_id, "computed_at": start_of_day(day + 1), **values} for user_id, values in users.items()
        ]
        offline.replace("snapshots", day, str(day), SCHEMA, [pa.RecordBatch.from_pylist(rows, SCHEMA)])
    offline.commit()


@pytest.fixture
def offline(tmp_path: Path) -> OfflineStore:
    return OfflineStore.open(str(tmp_path / "offline"))


@pytest.fixture
def feast(offline: OfflineStore, redis_url: str, tmp_path: Path) -> FeatureStore:
    """A feature store as a user of Feast opens it."""
    apply_definitions(offline, redis_url)
    return FeatureStore(repo_path=tmp_path / "offline" / FOLDER)


def read_with_feast(feast: FeatureStore, user_id: str) -> tuple[dict[str, float], dict[str, int]]:
    """Return the values of a user that are not null, and the time of each in Unix seconds."""
    response = feast.get_online_features(feast.get_feature_service(FEATURE_SERVICE), [{"user_id": user_id}])
    columns = response.to_dict(include_event_timestamps=True)
    values = {name: columns[name][0] for name in AGGREGATES if columns[name][0] is not None}
    return values, {name: columns[f"{name}__ts"][0] for name in values}


def test_applying_twice_changes_nothing(offline: OfflineStore, redis_url: str) -> None:
    assert apply_definitions(offline, redis_url) == [
        "created data source snapshots",
        "created entity user_id",
        "created feature service ranking",
        "created feature view user_reward_rate_30d",
        "created feature view user_tips_7d",
        "created project tips",
    ]
    assert apply_definitions(offline, redis_url) == []


def test_a_changed_maximum_age_updates_its_view_and_a_dropped_aggregate_deletes_it(
    offline: OfflineStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply_definitions(offline, redis_url)
    name = "reward_rate_30d"
    newer = type(AGGREGATES[name])(AGGREGATES[name].type, timedelta(days=3))
    monkeypatch.setattr("ml.features.feast.AGGREGATES", {name: newer})
    assert apply_definitions(offline, redis_url) == [
        "deleted feature view user_tips_7d",
        "updated feature service ranking",
        "updated feature view user_reward_rate_30d",
    ]
    assert apply_definitions(offline, redis_url) == []


def test_the_written_settings_have_no_password(offline: OfflineStore, tmp_path: Path) -> None:
    apply_definitions(offline, "rediss://tips:secret@redis.example/3")
    text = (tmp_path / "offline" / FOLDER / "feature_store.yaml").read_text()
    assert "secret" not in text
    assert yaml.safe_load(text)["online_store"]["connection_string"] == (
        "redis.example:6379,db=3,username=tips,password=${ONLINE_STORE_PASSWORD},ssl=true"
    )


def test_other_stores_are_refused(offline: OfflineStore, redis_url: str) -> None:
    with pytest.raises(FeastUnavailable, match=r"^ONLINE_STORE_URL: must be redis:// or rediss:// for Feast$"):
        apply_definitions(offline, "sqlite:///features.db")
    in_a_bucket = OfflineStore(fs.SubTreeFileSystem("", fs._MockFileSystem()), "s3://bucket")
    with pytest.raises(
        FeastUnavailable, match=r"^OFFLINE_STORE: must be a folder for Feast, whose registry and DuckDB"
    ):
        apply_definitions(in_a_bucket, redis_url)


EXAMPLES = {
    user(1): {"reward_rate_30d": 1 / 3, "tips_7d": 7.0},
    user(2): {"reward_rate_30d": 0.1 + 0.2, "tips_7d": 0.0},
    user(3): {"tips_7d": 12.0},
    user(4): {},
}


def test_feast_reads_what_this_project_wrote(feast: FeatureStore, redis_url: str) -> None:
    computed_at = start_of_day(TODAY)
    replace_all(redis_url, EXAMPLES.items(), computed_at)
    for user_id in [*EXAMPLES, user(5)]:
        values, times = read_with_feast(feast, user_id)
        assert values == EXAMPLES.get(user_id, {}) == read_user(redis_url, user_id, NOW).values
        assert set(times.values()) <= {int(computed_at.timestamp())}


def test_this_project_reads_what_feast_materialized(feast: FeatureStore, offline: OfflineStore, redis_url: str) -> None:
    older = {user(1): {"reward_rate_30d": 0.9, "tips_7d": 1.0}, user(6): {"reward_rate_30d": 0.7, "tips_7d": 3.0}}
    write_snapshots(offline, {TODAY - 2: older, TODAY - 1: EXAMPLES})
    feast.materialize(start_of_day(TODAY - 1), start_of_day(TODAY))
    for user_id, expected in {**older, **EXAMPLES}.items():
        assert read_with_feast(feast, user_id)[0] == expected == read_user(redis_url, user_id, NOW).values


def test_both_write_the_same_bytes(feast: FeatureStore, offline: OfflineStore, redis_url: str) -> None:
    write_snapshots(offline, {TODAY - 1: {user(1): EXAMPLES[user(1)]}})
    feast.materialize(start_of_day(TODAY - 1), start_of_day(TODAY))
    with redis.Redis.from_url(redis_url) as client:
        written_by_feast = client.hgetall(user_key(user(1)))
        client.delete(user_key(user(1)))
        replace_all(redis_url, [(user(1), EXAMPLES[user(1)])], start_of_day(TODAY))
        assert client.hgetall(user_key(user(1))) == written_by_feast != {}


def test_a_value_that_is_too_old_has_its_time_in_feast_and_is_missing_here(feast: FeatureStore, redis_url: str) -> None:
    computed_at = start_of_day(TODAY - 3)  # older than a number of tips may be
    replace_all(redis_url, EXAMPLES.items(), computed_at)
    ages = {view.name: view.ttl for view in feast.list_feature_views()}
    for user_id, expected in EXAMPLES.items():
        values, times = read_with_feast(feast, user_id)
        fresh = {
            name: value
            for name, value in values.items()
            if NOW - datetime.fromtimestamp(times[name], UTC) <= ages[feature_view(name)]
        }
        assert fresh == read_user(redis_url, user_id, NOW).values
        assert values == expected
        assert "tips_7d" not in fresh


def test_both_read_while_feast_materializes(
    feast: FeatureStore, offline: OfflineStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshots(offline, {TODAY - 2: EXAMPLES, TODAY - 1: {user_id: {"tips_7d": 99.0} for user_id in EXAMPLES}})
    feast.materialize(start_of_day(TODAY - 2), start_of_day(TODAY - 1))
    is_writing, has_been_read = threading.Event(), threading.Event()
    write = RedisOnlineStore.online_write_batch

    def wait_and_write(*arguments: Any, **options: Any) -> None:
        is_writing.set()
        assert has_been_read.wait(60)
        write(*arguments, **options)

    monkeypatch.setattr(RedisOnlineStore, "online_write_batch", wait_and_write)
    # As in another process, which has its own copy of the registry.
    materialize = FeatureStore(repo_path=feast.repo_path).materialize
    materialization = threading.Thread(target=materialize, args=(start_of_day(TODAY - 1), start_of_day(TODAY)))
    materialization.start()
    try:
        assert is_writing.wait(60)
        other = FeatureStore(repo_path=feast.repo_path)
        for user_id, expected in EXAMPLES.items():
            assert read_with_feast(other, user_id)[0] == expected == read_user(redis_url, user_id, NOW).values
    finally:
        has_been_read.set()
        materialization.join()
    assert read_with_feast(other, user(1))[0] == {"tips_7d": 99.0} == read_user(redis_url, user(1), NOW).values


def test_feast_reads_while_this_project_writes(feast: FeatureStore, redis_url: str) -> None:
    generations = [{user(1): dict.fromkeys(AGGREGATES, float(number))} for number in range(2)]
    replace_all(redis_url, generations[0].items(), start_of_day(TODAY))
    is_done = threading.Event()

    def write() -> None:
        for number in range(200):
            replace_all(redis_url, generations[number % 2].items(), start_of_day(TODAY))
        is_done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not is_done.is_set():
        seen.append(read_user(redis_url, user(1), NOW).values)
        assert set(read_with_feast(feast, user(1))[0].values()) <= {0.0, 1.0}
    writer.join()
    assert all(values in [generation[user(1)] for generation in generations] for values in seen)
    assert read_with_feast(feast, user(1))[0] == generations[1][user(1)]


@pytest.mark.parametrize("seen_only", [False, True])
def test_a_point_in_time_join_of_feast_gives_the_aggregates_of_each_decision(
    feast: FeatureStore, offline: OfflineStore, seen_only: bool
) -> None:
    tips = random_tips(60, users=40, per_day=2)  # with users who are away for more than 30 days
    write_tips(offline, tips)
    counted = CountedTips(timedelta(hours=24), seen_only=seen_only)
    days = range(FIRST_DAY - 1, FIRST_DAY + 60)
    write_snapshots_of_days(offline, counted, days)
    write_decision_aggregates(offline, counted)
    decisions = pa.Table.from_batches(
        batch for day in offline.days("aggregates") for batch in offline.batches("aggregates", day)
    )
    asked = decisions.select(["tip_id", "user_id", "created_at"]).rename_columns(
        ["tip_id", "user_id", "event_timestamp"]
    )
    joined = feast.get_historical_features(asked.to_pandas(), feast.get_feature_service(FEATURE_SERVICE)).to_arrow()
    assert joined.num_rows == decisions.num_rows > 60
    expected = decisions.sort_by("tip_id").select([*AGGREGATES]).to_pydict()
    assert joined.sort_by("tip_id").select([*AGGREGATES]).to_pydict() == expected
    assert None in expected["tips_7d"]


def test_the_command_registers_the_aggregates(tmp_path: Path, redis_url: str) -> None:
    settings = {"OFFLINE_STORE": str(tmp_path / "offline"), "ONLINE_STORE_URL": redis_url}
    first, second = (run(TIPS, "features", "apply", **settings) for _ in range(2))
    assert "created feature view user_tips_7d\n" in first.stdout
    assert (second.stdout, second.returncode) == ("Nothing has changed.\n", 0)
