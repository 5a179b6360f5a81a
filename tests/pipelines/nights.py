"""A database with ranked tips of some days, and the nightly job on it."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from ml.features.offline_store import OfflineStore, start_of_day
from ml.pipelines.aggregates import CountedTips, snapshot, write_snapshots
from ml.pipelines.export import export
from ml.pipelines.nightly_job import NightlyJob
from ml.store.reactions import Reaction
from ml.store.tip_records import TipRecord
from ml.store.tips import open_tip_store
from tests.databases import Database
from tests.example_tips import WINDOW, SetClock, a_tip
from tests.policies import LIKED

COUNTED = CountedTips(WINDOW, seen_only=False)
DAYS, USERS, PER_DAY = 9, 20, 40
LAST_DAY = 20_483
"""The day before NOW, 2026-01-30."""
VERSIONS = ("v1", "v2-mentor")


def fill(database: Database, last_day: int, *, days: int = DAYS, liked: Mapping[str, str] = LIKED) -> None:
    """Store ranked decisions of some days up to `last_day`, each with a reaction to most tips of the liked version.

    `/score` used the users' aggregates as of the start of each day. `liked`: the prompt version that users prefer, by
    their mood.
    """
    with TemporaryDirectory() as folder:
        offline = OfflineStore.open(folder)
        for day in range(last_day - days + 1, last_day + 1):
            export(database.url, offline)
            write_snapshots(offline, COUNTED, [day - 1])
            aggregates = dict(snapshot(offline, day - 1))
            decisions = [*_decisions(day, aggregates)]
            asyncio.run(_store(database.url, day, decisions, liked))


def _decisions(day: int, aggregates: Mapping[str, Mapping[str, float]]) -> Iterator[list[TipRecord]]:
    chance = random.Random(day)
    for number in range(PER_DAY):
        ids = [UUID(int=(day * PER_DAY + number) * len(VERSIONS) + index) for index in range(len(VERSIONS))]
        user_id, mood = f"u-{chance.randrange(USERS)}", chance.choice([*LIKED])
        created_at = start_of_day(day) + timedelta(minutes=number * (22 * 60 // PER_DAY))
        shown = chance.randrange(len(VERSIONS))
        yield [
            a_tip(
                tip_id=ids[index],
                user_id=user_id,
                created_at=created_at,
                prompt_version=version,
                signals={"mood": mood, "stress": chance.randint(1, 10)},
                segments=(f"mood:{mood}",),
                decision_id=ids[0],
                score=0.5,
                score_probability=1 / len(VERSIONS),
                score_policy="uniform",
                candidates=[str(each) for each in ids],
                shown=index == shown,
                aggregates=aggregates.get(user_id, {}),
                aggregates_at=start_of_day(day),
            )
            for index, version in enumerate(VERSIONS)
        ]


async def _store(url: str, day: int, decisions: list[list[TipRecord]], liked: Mapping[str, str]) -> None:
    chance = random.Random(-day)
    clock = SetClock(start_of_day(day + 1) - timedelta(minutes=30))
    async with open_tip_store(url, clock, reaction_window=WINDOW) as store:
        await store.add(*(tip for candidates in decisions for tip in candidates))
        await store.react(
            [
                Reaction(tip.tip_id, "done", tip.created_at + timedelta(minutes=5))
                for candidates in decisions
                for tip in candidates
                if tip.shown and chance.random() < (0.8 if tip.prompt_version == liked[tip.signals["mood"]] else 0.2)
            ]
        )


def react(database: Database, tip_id: UUID, kind: str, at: datetime) -> None:
    """Store a reaction that is received when the user reacts."""

    async def store_reaction() -> None:
        async with open_tip_store(database.url, SetClock(at), reaction_window=WINDOW) as store:
            await store.react([Reaction(tip_id, kind, at)])

    asyncio.run(store_reaction())


def a_job(database: Database, folder: Path, tracking_uri: str, name: str, **fields: object) -> NightlyJob:
    """Return a job on a database, with an offline store and an online store in a folder, in the night after NOW's."""
    values: dict[str, object] = {
        "counted": COUNTED,
        "release": "1.0",
        "clock": SetClock(start_of_day(LAST_DAY + 1) + timedelta(minutes=30)),
        "online_store_url": f"sqlite:///{folder}/features.db",
    }
    return NightlyJob(
        database_url=database.url,
        offline=OfflineStore.open(f"{folder}/offline"),
        policy_name=name,
        tracking_uri=tracking_uri,
        **{**values, **fields},  # type: ignore[arg-type]
    )


def content_of(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of an offline store that readers see."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
