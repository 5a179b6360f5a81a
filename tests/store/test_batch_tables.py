"""The tables that batch jobs write: proposals of rollouts, and reports."""

import asyncio
from datetime import timedelta

from ml.store.batch_reports import BatchReport, BatchReports
from ml.store.database import Database as OpenDatabase
from ml.store.proposals import Proposal, Proposals
from tests.databases import Database
from tests.example_tips import NOW


def test_a_proposal_replaces_the_earlier_one_of_its_kind(database: Database) -> None:
    first = Proposal("policy", "0123456789ab", NOW, "models:/tips/3", {"gain": {"low": 0.01}})
    second = Proposal("policy", "ba9876543210", NOW + timedelta(days=1), "models:/tips/4", {})
    prompt = Proposal("prompt", "v2-mentor", NOW, "", {})

    async def run() -> None:
        store = OpenDatabase(database.url)
        proposals = Proposals(store)
        assert await proposals.all() == []
        for proposal in (first, prompt, second, second):
            await proposals.put(proposal)
        assert await proposals.all() == [second, prompt]
        assert await proposals.find("policy", second.version) == second
        assert await proposals.find("policy", first.version) is None
        await store.close()

    asyncio.run(run())


def test_the_newest_report_of_each_day_and_name_is_kept(database: Database) -> None:
    later = NOW + timedelta(hours=1)

    async def run() -> None:
        store = OpenDatabase(database.url)
        reports = BatchReports(store)
        for report in (
            BatchReport(20_000, "drift", NOW, {"steps": 1}),
            BatchReport(20_000, "drift", later, {"steps": 2}),
            BatchReport(20_001, "drift", later, {"steps": 3}),
            BatchReport(20_002, "other", later, {"steps": 4}),
        ):
            await reports.record(report)
        assert await reports.newest("drift") == [BatchReport(20_001, "drift", later, {"steps": 3})]
        assert [report.figures["steps"] for report in await reports.newest("drift", days=9)] == [3, 2]
        assert await reports.newest("unknown") == []
        await store.close()

    asyncio.run(run())
