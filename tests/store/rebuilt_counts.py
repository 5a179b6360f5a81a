"""The counters, rebuilt from the rows that they count."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ml.store.rollup import CounterDelta, TipDimensions
from tests.databases import Database, Row

_PLAIN_COLUMNS = (
    *("prompt_version", "prompt_digest", "input_tokens", "output_tokens", "ms"),
    *("policy", "score_policy", "prompt_version_asked"),
)


def check_counts(database: Database) -> None:
    """Assert that the stored counters equal the counters that are rebuilt from the stored rows."""
    delta = rebuilt_counts(database.rows("SELECT * FROM tip_scores"))
    for table, counts, counted in (
        ("reward_hours", delta.rewards, "tips"),
        ("assignment_hours", delta.assignments, "expected"),
    ):
        stored = [row for row in database.rows(f"SELECT * FROM {table}") if row[counted] > 1e-6]
        rebuilt = [_fields(key) | _fields(count) for key, count in counts.items()]
        assert _comparable(stored) == _comparable(rebuilt)


def rebuilt_counts(rows: Iterable[Row]) -> CounterDelta:
    """Return the counters of these rows of `tip_scores`, as both databases return them."""
    delta = CounterDelta()
    for row in rows:
        tip = TipDimensions(
            created_at=_time(row["created_at"]),
            segments=tuple(json.loads(row["segments"])),
            options=json.loads(row["options"]),
            fallback=bool(row["fallback"]),
            shown=bool(row["shown"]),
            simulated=bool(row["simulated"]),
            **{name: row[name] for name in _PLAIN_COLUMNS},
        )
        delta.add_tip(tip)
        if row["reaction"]:
            delta.add_reaction(tip, row["reaction"], row["reward"])
    return delta


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _comparable(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows that can be compared: sorted columns, rounded floats, and a defined order."""

    def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: round(row[name], 6) if isinstance(row[name], float) else row[name] for name in sorted(row)}

    return sorted((rounded(row) for row in rows), key=lambda row: [str(value) for value in row.values()])
