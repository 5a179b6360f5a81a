"""Train/serve equality: each way to compute the aggregates in batch gives what `/score` used, bit for bit."""

from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from ml.features.definitions import AGGREGATES
from ml.pipelines.aggregates import logged_aggregates, recomputed
from tests.pipelines import aggregates_in_sql
from tests.pipelines.simulated_days import COUNTED, decision_aggregates, simulated_days, used_aggregates


def test_the_batch_gives_what_score_used_for_every_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = simulated_days(tmp_path, monkeypatch, days=5, users=12)
    used = used_aggregates(offline)
    assert decision_aggregates(offline) == used
    assert len({str(values) for values in used.values()}) > 5, "they differ from user to user and from day to day"
    for day in offline.days("tip_scores"):
        logged = [*logged_aggregates(offline, day)]
        assert recomputed(offline, logged, COUNTED) == [each.aggregates for each in logged]
    window = COUNTED.reaction_window // timedelta(microseconds=1)
    with duckdb.connect() as connection:
        query = aggregates_in_sql.decision_aggregates(tmp_path / "offline", window, seen_only=False)
        rows = connection.execute(query).fetchall()
    assert used == {
        tip_id: {name: value for name, value in zip(AGGREGATES, values, strict=True) if value is not None}
        for tip_id, *values in rows
        if tip_id in used
    }
