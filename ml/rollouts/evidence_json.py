"""Evidence as JSON: for the events that rest on it, and for the dated rows of the store. Pure."""

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from ml.rollouts.evidence import Evidence
from ml.rollouts.gates import GateResult


def evidence_as_json(evidence: Evidence, results: Collection[GateResult] = ()) -> dict[str, Any]:
    """Return the evidence, and the results of gates, as JSON for an event."""
    document = {name: value for name, value in asdict(evidence).items() if value not in (None, (), [])}
    gates = {each.name: {"passed": each.passed, "figure": each.figure, "bound": each.bound} for each in results}
    failed = [each.name for each in results if not each.passed]
    return document | ({"gates": gates, "failed": failed} if gates else {})


def daily_figures(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Return the figures of a rollout by name, as JSON for the dated rows of the store."""
    document = evidence_as_json(evidence)
    figures: dict[str, dict[str, Any]] = {"totals": {}}
    for name, value in document.items():
        if name == "slices":
            figures[name] = {each["name"]: each for each in value}
        elif name == "funnel":
            figures[name] = {each["version"]: each for each in value}
        elif isinstance(value, dict):
            figures[name] = value
        elif name != "step_hours":  # it changes with every look
            figures["totals"][name] = value
    return figures
