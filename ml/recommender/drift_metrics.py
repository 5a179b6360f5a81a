"""The newest figures of `tips nightly` about the inputs, as metrics of the recommender."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from ml.platform.background import BackgroundTasks
from ml.platform.errors import StorageUnavailable
from ml.platform.telemetry import Telemetry
from ml.registry.ranking_cards import drift_metrics
from ml.store.batch_reports import DRIFT, BatchReports
from ml.store.database import Database

_DAY_SECONDS = 86_400


async def update(reports: BatchReports, telemetry: Telemetry) -> None:
    """Set the metrics to the newest report, if there is one. Raises StorageUnavailable."""
    for report in await reports.newest(DRIFT):
        telemetry.drift.clear()
        telemetry.drift_psi.clear()
        for metric in drift_metrics(report.figures):
            telemetry.drift.labels(metric.name).set(metric.value)
        for name, feature in report.figures["features"].items():
            telemetry.drift_psi.labels(name).set(feature["psi"])
        telemetry.drift_day.set((report.day + 1) * _DAY_SECONDS)


@asynccontextmanager
async def keep_drift_metrics(
    database: Database, telemetry: Telemetry, background: BackgroundTasks, *, every: float
) -> AsyncIterator[None]:
    """Read the newest report every `every` seconds until the block ends."""
    reports = BatchReports(database)

    async def run() -> None:
        while True:
            with suppress(StorageUnavailable):  # is logged where it is raised
                await update(reports, telemetry)
            await asyncio.sleep(every)

    async with background.run("drift_metrics", run()):
        yield
