"""Days of simulated users, after each of which the aggregates are written to the online store that `/score` reads."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from ml.features.definitions import AGGREGATES
from ml.features.offline_store import OfflineStore, day_of_date, start_of_day
from ml.features.online_store import replace_all
from ml.pipelines.aggregates import CountedTips, snapshot, write_decision_aggregates, write_snapshots
from ml.pipelines.export import export
from ml.recommender.settings import RecommenderSettings
from ml.simulation.service import simulate
from ml.store.recount import prepare_database

FIRST_DAY = day_of_date(datetime(2026, 9, 1, tzinfo=UTC).date())
COUNTED = CountedTips(timedelta(hours=24), seen_only=False)


def simulated_days(folder: Path, monkeypatch: pytest.MonkeyPatch, *, days: int, users: int = 8) -> OfflineStore:
    """Return the offline store of `days` days, on each of which users got ranked tips."""
    url, online_url = f"sqlite+aiosqlite:///{folder}/tips.db", f"sqlite:///{folder}/features.db"
    monkeypatch.setenv("ONLINE_STORE_URL", online_url)
    replace_all(online_url, [], start_of_day(FIRST_DAY))
    prepare_database(url, COUNTED.reaction_window)
    settings = RecommenderSettings(database_url=SecretStr(url), tip_candidates=2)
    offline = OfflineStore.open(str(folder / "offline"))
    for day in range(FIRST_DAY, FIRST_DAY + days):
        end = start_of_day(day + 1)
        simulate(settings, users=users, days=1, end=end, seed=day, progress=iter)
        export(url, offline)
        write_snapshots(offline, COUNTED, [day])
        offline.commit()
        replace_all(online_url, snapshot(offline, day), end)
    write_decision_aggregates(offline, COUNTED)
    offline.commit()
    return offline


def used_aggregates(offline: OfflineStore) -> Mapping[str, Mapping[str, float]]:
    """Return the aggregates that `/score` used for each tip that was shown; empty if it had none.

    Without the tips of midnight, which are before the aggregates as of midnight are written.
    """
    columns = ["tip_id", "created_at", "shown", "score_policy", "aggregates"]
    rows = [
        row
        for day in offline.days("tip_scores")
        for batch in offline.batches("tip_scores", day, columns)
        for row in batch.to_pylist()
        if row["shown"]
    ]
    assert {row["score_policy"] for row in rows} == {"uniform"}, "all of them were ranked"
    return {row["tip_id"]: json.loads(row["aggregates"] or "{}") for row in rows if row["created_at"].hour}


def decision_aggregates(offline: OfflineStore) -> Mapping[str, Mapping[str, float]]:
    """Return the aggregates of each decision that the batch computes, of the same ones, without missing values."""
    rows = [
        row
        for day in offline.days("aggregates")
        for batch in offline.batches("aggregates", day)
        for row in batch.to_pylist()
    ]
    return {
        row["tip_id"]: {name: row[name] for name in AGGREGATES if row[name] is not None}
        for row in rows
        if row["created_at"].hour
    }
