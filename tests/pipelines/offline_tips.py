"""Tips, reactions and exposures in an offline store, with the columns that aggregates are computed from."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from ml.features.offline_store import OfflineStore
from ml.features.point_in_time import DAY
from ml.store.reactions import REACTIONS

HOUR = DAY // 24
FIRST_DAY = 20_500
TIME = pa.timestamp("us", "UTC")
SCHEMAS = {
    "tip_scores": pa.schema(
        [
            *[("tip_id", pa.string()), ("user_id", pa.string()), ("created_at", TIME), ("shown", pa.bool_())],
            *[("aggregates", pa.string()), ("aggregates_at", TIME)],
        ]
    ),
    "reactions": pa.schema(
        [
            *[("tip_id", pa.string()), ("at", TIME), ("reaction", pa.string())],
            *[("reward", pa.float64()), ("received_at", TIME)],
        ]
    ),
    "exposures": pa.schema([("tip_id", pa.string()), ("at", TIME), ("received_at", TIME)]),
}


@dataclass(frozen=True)
class Tip:
    """A tip. Times are microseconds since 1970.

    `reactions`: each with the time at which the user reacted, its kind, and when it was received. `aggregates_at`: as
    of when the `aggregates` were computed.
    """

    number: int
    user_id: str
    created_at: int
    reactions: tuple[tuple[int, str, int], ...] = ()
    exposed_at: int | None = None
    shown: bool = True
    aggregates: Mapping[str, float] | None = None
    aggregates_at: int | None = None

    @property
    def tip_id(self) -> str:
        return str(UUID(int=self.number))

    @property
    def day(self) -> int:
        return self.created_at // DAY


def write_tips(offline: OfflineStore, tips: Iterable[Tip]) -> None:
    """Replace the tips of the store, with their reactions and exposures."""
    ordered = sorted(tips, key=lambda tip: (tip.created_at, tip.tip_id))
    by_day = {day: [*of_day] for day, of_day in groupby(ordered, key=lambda tip: tip.day)}
    for day in {*offline.days("tip_scores")} - by_day.keys():
        for table in SCHEMAS:
            offline.remove(table, day)
    for day, of_day in by_day.items():
        for table, rows in _rows(of_day).items():
            source = sha256(json.dumps(rows).encode()).hexdigest()
            columns = (
                [
                    pa.array(column, pa.int64() if field.type == TIME else field.type).cast(field.type)
                    for field, column in zip(SCHEMAS[table], zip(*rows, strict=True), strict=True)
                ]
                if rows
                else []
            )
            batches = [pa.record_batch(columns, schema=SCHEMAS[table])] if rows else []
            offline.replace(table, day, source, SCHEMAS[table], batches)
    offline.commit()


def random_tips(days: int, *, users: int = 30, per_day: int = 40, seed: int = 1) -> list[Tip]:
    """Return tips of users with late, repeated and out-of-order reactions, some of them at the same instant."""
    rng = np.random.default_rng(seed)
    tips = []
    for number in range(days * per_day):
        created_at = FIRST_DAY * DAY + int(rng.integers(days * 24 * 4)) * (HOUR // 4)
        reactions: dict[tuple[int, str], int] = {}
        for _ in range(int(rng.choice(4, p=[0.4, 0.3, 0.2, 0.1]))):
            received_at = created_at + int(rng.integers(1, 6 * 24)) * HOUR
            at = max(created_at, received_at - int(rng.integers(3)) * 12 * HOUR)
            reactions.setdefault((at, str(rng.choice([*REACTIONS]))), received_at)
        exposed_at = created_at + int(rng.integers(30)) * HOUR if rng.random() < 0.8 else None
        user_id = f"user {int(users * rng.random() ** 2)}"
        history = tuple((at, kind, received_at) for (at, kind), received_at in reactions.items())
        tips.append(Tip(number, user_id, created_at, history, exposed_at, shown=bool(rng.random() < 0.9)))
    return tips


def _rows(tips: Iterable[Tip]) -> dict[str, list[list[Any]]]:
    tips = [*tips]
    reacted = sorted((tip.tip_id, received_at, at, kind) for tip in tips for at, kind, received_at in tip.reactions)
    return {
        "tip_scores": [
            [
                *[tip.tip_id, tip.user_id, tip.created_at, tip.shown],
                *[None if tip.aggregates is None else json.dumps(dict(tip.aggregates)), tip.aggregates_at],
            ]
            for tip in tips
        ],
        "reactions": [[tip_id, at, kind, REACTIONS[kind], received_at] for tip_id, received_at, at, kind in reacted],
        "exposures": sorted([tip.tip_id, tip.exposed_at, tip.exposed_at] for tip in tips if tip.exposed_at is not None),
    }
