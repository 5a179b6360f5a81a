"""The counters, and the state of tips that they rest on, rebuilt from the stored rows."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from ml.store.failures import GenerationFailure
from ml.store.rollup import CounterDelta, window_seconds
from tests.databases import Database, Row
from tests.example_tips import WINDOW

_TIMES = ("created_at", "received_at", "at", "reacted_at")
_BOOLEANS = ("fallback", "shown", "simulated", "seen")
_JSON = ("segments", "options", "policy_options")


def check_counts(database: Database, window: timedelta = WINDOW) -> None:
    """Assert that the stored counters, and the state of each tip, equal those that are rebuilt from the stored rows.

    The draws of everyone in purged hours, which have no rows any more, are left out.
    """
    delta = rebuilt_counts(database, window)
    first_hour = min((key.hour for key in delta.draws), default=2**31)
    known = {row["id"] for row in database.rows("SELECT id FROM distributions")}
    tables: Mapping[str, Mapping[Any, Any]] = {
        "reward_hours": delta.rewards,
        "draw_hours": delta.draws,
        "ranking_hours": delta.rankings,
    }
    for table, counts in tables.items():
        stored = database.rows(f"SELECT * FROM {table}")
        if table != "reward_hours":
            stored = [row for row in stored if row["segment"] or row["hour"] >= first_hour]
            assert {row["distribution"] for row in stored} <= known
        rebuilt = [key._asdict() | _fields(count) for key, count in counts.items()]
        assert _comparable(stored) == _comparable(rebuilt)


def rebuilt_counts(database: Database, window: timedelta = WINDOW) -> CounterDelta:
    """Return the counters of the stored rows; assert that the state of each tip follows from what was received."""
    reactions: dict[Any, list[Row]] = defaultdict(list)
    for row in rows(database, "reactions"):
        reactions[row["tip_id"]].append(row)
    exposed = {row["tip_id"]: row["received_at"] for row in rows(database, "exposures")}
    delta = CounterDelta(window_seconds(window))
    for tip in rows(database, "tip_scores"):
        end = tip["created_at"] + window
        received = sorted(reactions[tip["tip_id"]], key=lambda row: (row["at"], row["reaction"]))
        in_time = [row for row in received if row["received_at"] <= end]
        latest = received[-1] if received else {"reaction": None, "reward": None}
        assert (tip["reaction"], tip["reward"]) == (latest["reaction"], latest["reward"])
        assert tip["reward_in_window"] == (in_time[-1]["reward"] if in_time else None)
        assert tip["seen"] == (tip["tip_id"] in exposed and exposed[tip["tip_id"]] <= end)
        delta.add_row(tip)
    for failure in rows(database, "generation_failures"):
        delta.add_failure(GenerationFailure.of(failure))
    return delta


def rows(database: Database, table: str) -> list[Row]:
    """Return the rows of a table with the same values on both databases."""
    stored = database.rows(f"SELECT * FROM {table}")
    return [{name: _value(name, value) for name, value in row.items()} for row in stored]


def _value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in _TIMES:
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value
    if name in _BOOLEANS:
        return bool(value)
    if name in _JSON:
        return json.loads(value)
    return UUID(str(value)) if name in {"tip_id", "decision_id"} else value


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _comparable(counters: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the counters that are not zero, so that they can be compared: rounded floats, and a defined order."""

    def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: round(row[name], 6) if isinstance(row[name], float) else row[name] for name in sorted(row)}

    nonzero = (rounded(row) for row in counters if row["tips"])
    return sorted(nonzero, key=lambda row: [f"{value}" for value in row.values()])
