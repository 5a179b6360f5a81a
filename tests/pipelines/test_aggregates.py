"""Aggregates from the offline store: values, files, and what makes a day be computed again."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from ml.features.definitions import AGGREGATES
from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY
from ml.pipelines import aggregates
from ml.pipelines.aggregates import (
    CountedTips,
    logged_aggregates,
    recomputed,
    snapshot,
    write_decision_aggregates,
    write_snapshots,
)
from tests.pipelines.aggregates_in_sql import decision_aggregates
from tests.pipelines.offline_tips import FIRST_DAY, HOUR, Tip, random_tips, write_tips

COUNTED = CountedTips(timedelta(hours=24), seen_only=False)
SEEN = replace(COUNTED, seen_only=True)
DAYS = 36
LAST_DAY = FIRST_DAY + DAYS - 1

Values = Mapping[str, float | None]


def store(folder: Path) -> OfflineStore:
    return OfflineStore.open(str(folder))


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def rows(offline: OfflineStore, table: str, key: str) -> dict[str, Values]:
    """Return the aggregates in all rows of a table, by the value of a column."""
    columns = [key, *AGGREGATES]
    batches = [batch for day in offline.days(table) for batch in offline.batches(table, day, columns)]
    return {row.pop(key): row for batch in batches for row in batch.to_pylist()}


@pytest.fixture(scope="module")
def tips() -> list[Tip]:
    return random_tips(DAYS)


@pytest.fixture(scope="module")
def log(tips: list[Tip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with all tips."""
    folder = tmp_path_factory.mktemp("offline")
    write_tips(store(folder), tips)
    return folder


@pytest.fixture
def offline(log: Path, tmp_path: Path) -> OfflineStore:
    """A store with all tips, in `tmp_path`/offline."""
    return store(Path(shutil.copytree(log, tmp_path / "offline")))


@pytest.mark.parametrize("counted", [COUNTED, SEEN, replace(SEEN, reaction_window=timedelta(days=9))])
def test_each_decision_has_the_aggregates_that_an_asof_join_in_sql_returns(
    offline: OfflineStore, counted: CountedTips, tmp_path: Path
) -> None:
    write_decision_aggregates(offline, counted)
    window = counted.reaction_window // timedelta(microseconds=1)
    with duckdb.connect() as connection:
        query = connection.execute(decision_aggregates(tmp_path / "offline", window, seen_only=counted.seen_only))
        expected = {tip_id: dict(zip(AGGREGATES, values, strict=True)) for tip_id, *values in query.fetchall()}
    assert rows(offline, "aggregates", "tip_id") == expected
    assert len(expected) > 1_200


def test_the_number_of_partitions_changes_no_byte(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, per_partition in (("one", 10**6), ("many", 300)):
        monkeypatch.setattr(aggregates, "TIPS_PER_PARTITION", per_partition)
        monkeypatch.setattr(aggregates, "_VALUES_AT_ONCE", per_partition)
        offline = store(Path(shutil.copytree(log, tmp_path / name)))
        write_decision_aggregates(offline, COUNTED)
        write_snapshots(offline, COUNTED, range(FIRST_DAY, LAST_DAY + 5, 4))
        offline.commit()
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_the_snapshot_of_a_day_has_what_the_decisions_of_the_next_day_have(
    tips: list[Tip], offline: OfflineStore
) -> None:
    write_decision_aggregates(offline, SEEN)
    write_snapshots(offline, SEEN, [LAST_DAY - 1])
    users = dict(snapshot(offline, LAST_DAY - 1))
    assert [*users] == sorted(users)
    of_tips = rows(offline, "aggregates", "tip_id")
    compared = [tip for tip in tips if tip.shown and tip.day == LAST_DAY]
    assert len(compared) > 10
    for tip in compared:
        known = {name: value for name, value in of_tips[tip.tip_id].items() if value is not None}
        assert users.get(tip.user_id, {}) == known
    (batch,) = offline.batches("snapshots", LAST_DAY - 1)
    assert {*batch["computed_at"].to_pylist()} == {datetime.fromtimestamp(LAST_DAY * 86_400, UTC)}


def test_day_by_day_gives_the_files_of_all_days_at_once_and_late_reactions_change_none(
    tips: list[Tip], offline: OfflineStore, tmp_path: Path
) -> None:
    days = range(LAST_DAY - 2, LAST_DAY + 1)
    by_day = store(tmp_path / "by day")
    for day in days:
        end = (day + 1) * DAY
        write_tips(by_day, known_at(end, tips))
        write_decision_aggregates(by_day, COUNTED)
        write_snapshots(by_day, COUNTED, [day])
    written = {table: by_day.days(table) for table in ("aggregates", "snapshots")}
    write_tips(by_day, tips)
    for each in (offline, by_day):
        write_decision_aggregates(each, COUNTED)
        write_snapshots(each, COUNTED, days)
        each.commit()
    assert {table: by_day.days(table) for table in written} == written
    assert files(tmp_path / "by day") == files(tmp_path / "offline")


def test_a_forgotten_user_is_in_no_file_and_a_purged_day_has_none(
    tips: list[Tip], offline: OfflineStore, tmp_path: Path
) -> None:
    fresh, kept = store(tmp_path / "fresh"), [tip for tip in tips if tip.user_id != "user 0"]
    write_tips(fresh, kept)
    for each in (offline, fresh):
        write_decision_aggregates(each, COUNTED)
        write_snapshots(each, COUNTED, [FIRST_DAY + 3, LAST_DAY])
    fresh.commit()
    assert "user 0" in dict(snapshot(offline, FIRST_DAY + 3))
    write_tips(offline, kept)
    write_decision_aggregates(offline, COUNTED)
    write_snapshots(offline, COUNTED, [])
    offline.commit()
    assert files(tmp_path / "offline") == files(tmp_path / "fresh")
    write_tips(offline, [tip for tip in kept if tip.day > FIRST_DAY + 9])
    write_decision_aggregates(offline, COUNTED)
    write_snapshots(offline, COUNTED, [])
    assert min(offline.days("aggregates")) == FIRST_DAY + 10
    assert [*offline.days("snapshots")] == [LAST_DAY]


def test_other_settings_make_all_days_be_computed_again(offline: OfflineStore) -> None:
    write_decision_aggregates(offline, COUNTED)
    before = offline.days("aggregates")
    write_decision_aggregates(offline, COUNTED)
    assert offline.days("aggregates") == before
    write_decision_aggregates(offline, SEEN)
    assert all(file.path != before[day].path for day, file in offline.days("aggregates").items())


def known_at(end: int, tips: list[Tip]) -> list[Tip]:
    """Return what is known of tips at a time."""
    return [
        replace(
            tip,
            reactions=tuple(each for each in tip.reactions if each[2] < end),
            exposed_at=None if tip.exposed_at is None or tip.exposed_at >= end else tip.exposed_at,
        )
        for tip in tips
        if tip.created_at < end
    ]


def logged_days(folder: Path, tips: list[Tip]) -> list[Tip]:
    """Return the tips, those of the last days with the aggregates that their users had when they were shown.

    Each day, the snapshot of the day before is computed from what is known then; on every fifth day that fails, and the
    one before stays in use.
    """
    online: tuple[int, Mapping[str, Mapping[str, float]]] = (0, {})
    offline, logged = store(folder), []
    for day in range(LAST_DAY - 9, LAST_DAY + 1):
        midnight = day * DAY
        if day % 5:
            write_tips(offline, known_at(midnight, tips))
            write_snapshots(offline, SEEN, [day - 1])
            online = midnight, dict(snapshot(offline, day - 1))
        for tip in tips:
            if tip.day == day and tip.shown and tip.user_id in online[1]:
                logged.append(replace(tip, aggregates=online[1][tip.user_id], aggregates_at=online[0]))
            elif tip.day == day:
                logged.append(tip)
    return [tip for tip in tips if tip.day < LAST_DAY - 9] + logged


def differing(offline: OfflineStore, tips: list[Tip]) -> tuple[int, int]:
    """Return how many logged aggregates differ from those that follow from the log, and how many there are."""
    write_tips(offline, tips)
    logged = [each for day in offline.days("tip_scores") for each in logged_aggregates(offline, day)]
    expected = recomputed(offline, logged, SEEN)
    return sum(one.aggregates != other for one, other in zip(logged, expected, strict=True)), len(logged)


def test_what_decisions_used_follows_from_the_log_to_the_last_bit_and_a_leak_is_found(
    tips: list[Tip], offline: OfflineStore, tmp_path: Path
) -> None:
    tips = logged_days(tmp_path / "days", tips)
    n = sum(tip.aggregates is not None for tip in tips)
    assert n > 200
    assert differing(offline, tips) == (0, n)
    # Rewards that were known only after the cut-off.
    early = [replace(tip, reactions=tuple((at, kind, at) for at, kind, _ in tip.reactions)) for tip in tips]
    assert differing(offline, early)[0] > n / 20
    # The tips of the same day.
    later = [tip if tip.aggregates_at is None else replace(tip, aggregates_at=tip.created_at) for tip in tips]
    assert differing(offline, later)[0] > n / 2
    (wrong,) = [tip for tip in tips if tip.aggregates is not None][-1:]
    assert wrong.aggregates
    changed = replace(wrong, aggregates={**wrong.aggregates, "tips_7d": wrong.aggregates["tips_7d"] + 2**-44})
    assert differing(offline, [changed if tip is wrong else tip for tip in tips]) == (1, n)


def test_values_that_were_too_old_were_not_used(tmp_path: Path) -> None:
    at = (FIRST_DAY + 10) * DAY
    past = Tip(1, "u", at - 3 * DAY, ((at - 2 * DAY, "done", at - 2 * DAY),))
    write_tips(
        offline := store(tmp_path),
        [past, *(Tip(2 + days, "u", at + days * DAY + HOUR, aggregates={}, aggregates_at=at) for days in range(8))],
    )
    logged = [each for day in offline.days("tip_scores") for each in logged_aggregates(offline, day)]
    both, rate = {"reward_rate_30d": 1.0, "tips_7d": 1.0}, {"reward_rate_30d": 1.0}
    assert recomputed(offline, logged, COUNTED) == [both, both, rate, rate, rate, rate, rate, {}]
    assert recomputed(offline, [], COUNTED) == []
    nobody = replace(logged[0], user_id="nobody")
    assert recomputed(offline, [nobody], COUNTED) == [{}]
