"""The figures of the nightly job as metrics: the newest ones, and nothing of earlier ones."""

import asyncio

from prometheus_client import CollectorRegistry

from ml.platform.telemetry import Telemetry
from ml.recommender.drift_metrics import update
from ml.store.batch_reports import DRIFT, BatchReport, BatchReports
from ml.store.database import Database as OpenDatabase
from tests.databases import Database
from tests.example_tips import NOW
from tests.fixtures import ON_SQLITE


def figures(**features: float) -> dict[str, object]:
    return {
        "day": "2026-11-30",
        "policy": "0123456789ab",
        "equality": {"checked": 90, "different": 1},
        "decisions": 100,
        "features": {name: {"psi": psi, "unseen": 0.0} for name, psi in features.items()},
        "unknown_version_share": 0.25,
        "effective_share": None,
    }


def samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        "/".join((sample.name, *sample.labels.values())): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith("tips_drift")
    }


@ON_SQLITE
def test_the_metrics_are_those_of_the_newest_report(database: Database) -> None:
    telemetry = Telemetry()

    async def run() -> None:
        store = OpenDatabase(database.url)
        reports = BatchReports(store)
        await update(reports, telemetry)
        assert samples(telemetry.registry) == {"tips_drift_day_seconds": 0}
        await reports.record(BatchReport(20_000, DRIFT, NOW, figures(mood=0.5, gone=0.9)))
        await update(reports, telemetry)
        await reports.record(BatchReport(20_001, DRIFT, NOW, figures(mood=0.3, energy=0.1)))
        await update(reports, telemetry)
        await store.close()

    asyncio.run(run())
    assert samples(telemetry.registry) == {
        "tips_drift/aggregates_different": 1,
        "tips_drift/largest_psi": 0.3,
        "tips_drift/largest_unseen_share": 0,
        "tips_drift/unknown_version_share": 0.25,
        "tips_drift_psi/mood": 0.3,
        "tips_drift_psi/energy": 0.1,
        "tips_drift_day_seconds": 20_002 * 86_400,
    }
