"""Train/serve equality over a simulated month: numpy, DuckDB, Spark and Feast give what `/score` used, bit for bit."""

from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from feast import FeatureStore

from ml.features.definitions import AGGREGATES
from ml.features.feast import FEATURE_SERVICE, FOLDER, apply_definitions
from ml.features.offline_store import OfflineStore
from ml.pipelines.aggregates import write_decision_aggregates
from ml.pipelines.spark import SparkEngine, spark_session
from tests.pipelines import aggregates_in_sql
from tests.pipelines.simulated_days import COUNTED, decision_aggregates, simulated_days, used_aggregates


def test_every_engine_gives_what_score_used_in_a_month(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    offline = simulated_days(tmp_path, monkeypatch, days=30)
    used = used_aggregates(offline)
    assert len(used) > 100
    assert decision_aggregates(offline) == used

    window = COUNTED.reaction_window // timedelta(microseconds=1)
    with duckdb.connect() as connection:
        query = aggregates_in_sql.decision_aggregates(tmp_path / "offline", window, seen_only=False)
        by_duckdb = {
            tip_id: present(values) for tip_id, *values in connection.execute(query).fetchall() if tip_id in used
        }
    assert by_duckdb == used

    by_spark = OfflineStore.open(str(tmp_path / "offline"))
    for day in [*by_spark.days("aggregates")]:
        by_spark.remove("aggregates", day)
    by_spark.commit()
    with spark_session("local[2]") as session:
        write_decision_aggregates(by_spark, COUNTED, engine=SparkEngine(session))
        by_spark.commit()
    assert decision_aggregates(by_spark) == used

    apply_definitions(by_spark, redis_url)
    feast = FeatureStore(repo_path=tmp_path / "offline" / FOLDER)
    decisions = pa.Table.from_batches(
        batch for day in by_spark.days("aggregates") for batch in by_spark.batches("aggregates", day)
    )
    names = ["tip_id", "user_id", "event_timestamp"]
    asked = decisions.select(["tip_id", "user_id", "created_at"]).rename_columns(names)
    joined = feast.get_historical_features(asked.to_pandas(), feast.get_feature_service(FEATURE_SERVICE)).to_arrow()
    by_feast = {
        row["tip_id"]: present([row[name] for name in AGGREGATES])
        for row in joined.to_pylist()
        if row["tip_id"] in used
    }
    assert by_feast == used


def present(values: list[float | None]) -> dict[str, float]:
    """Return the values that are not missing, by name."""
    return {name: value for name, value in zip(AGGREGATES, values, strict=True) if value is not None}
