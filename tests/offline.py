"""Offline stores with the tips of a database, or with decisions."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
from sqlalchemy import JSON

from ml.experiments.decisions import LoggedDecision
from ml.features.offline_store import OfflineStore, day_of_date
from ml.pipelines.export import export
from ml.pipelines.offline_log import OfflineDecisionLog
from ml.store import tables
from ml.store.export import SCHEMAS


def write_tips(store: OfflineStore, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `tip_scores` to the file of each day; a file keeps its name while its rows are the same."""
    schema, days = SCHEMAS["tip_scores"], defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["created_at"], str(row["tip_id"]))):
        days[day_of_date(row["created_at"].date())].append({name: _text(name, row[name]) for name in schema.names})
    for day in [*store.days("tip_scores")]:
        if day not in days:
            store.remove("tip_scores", day)
    for day, of_day in days.items():
        source = hashlib.sha256(repr(of_day).encode()).hexdigest()
        store.replace("tip_scores", day, source, schema, [pa.RecordBatch.from_pylist(of_day, schema)])
    store.commit()


def _text(name: str, value: Any) -> Any:
    if isinstance(tables.tip_scores.c[name].type, JSON):
        return None if value is None else json.dumps(value)
    return str(value) if isinstance(value, UUID) else value


def exported(url: str, folder: Path) -> OfflineStore:
    """Return a store in a folder with the tips of a database, which is not open in this process."""
    store = OfflineStore.open(str(folder / "offline"))
    export(url, store)
    return store


def write_decisions(store: OfflineStore, decisions: Iterable[LoggedDecision]) -> None:
    """Write decisions as the rows of their tips; the id of a decision is that of its first candidate's tip."""
    write_tips(store, [row for decision in decisions for row in rows_of(decision)])


def rows_of(decision: LoggedDecision) -> list[dict[str, Any]]:
    ids = [decision.id, *(f"{decision.id}-{number}" for number in range(1, len(decision.candidates)))]
    shown = decision.candidates[decision.chosen]
    of_decision: dict[str, Any] = dict.fromkeys(tables.tip_scores.c.keys()) | {
        "tip_id": decision.id,
        "user_id": decision.user_id,
        "created_at": datetime.fromtimestamp(decision.at, UTC),
        "policy": "sticky" if decision.per_user else "uniform",
        "options": {each.prompt_version: each.probability for each in decision.candidates},
        "prompt_version_asked": shown.prompt_version,
        "prompt_version": shown.prompt_version,
        "prompt_digest": shown.prompt_digest,
        "fallback": False,
        "signals": dict(decision.signals),
        "segments": [*decision.segments],
        "tip": "Rest.",
        "shown": True,
        "reward": decision.reward,
        "reward_in_window": decision.reward_in_window,
        "decision_id": decision.id,
        "aggregates": dict(decision.aggregates) or None,
        "seen": True,
    }
    if not decision.ranked:
        return [of_decision]
    return [
        of_decision
        | {
            "tip_id": tip_id,
            "prompt_version": each.prompt_version,
            "prompt_digest": each.prompt_digest,
            "tip": each.tip,
            "shown": index == decision.chosen,
            "score_probability": each.probability,
            "score_policy": "linear",
            "candidates": ids,
        }
        for index, (tip_id, each) in enumerate(zip(ids, decision.candidates, strict=True))
    ]


def logged_decisions(
    store: OfflineStore, *, since: datetime | None = None, before: datetime | None = None, seen_only: bool = False
) -> list[LoggedDecision]:
    """Return the decisions of a period."""
    period = (since.timestamp() if since else float("-inf"), before.timestamp() if before else float("inf"))
    log = OfflineDecisionLog(store, seen_only=seen_only)
    return [decision for chunk in log.chunks(*period) for decision in chunk]
