"""Model cards as Markdown.

Source: the model card specification of the Hugging Face Hub (the front matter, `model-index`).
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ml.registry.cards import CalibrationBin, Metric, ModelCard, Slice, missing


def to_markdown(card: ModelCard) -> str:
    """Return a card as Markdown with the front matter of the Hugging Face Hub.

    Every text of the card is escaped, so that none can add a heading, a link, markup or a field of the front matter.
    """
    return "\n".join([*_front_matter(card), "", *_body(card)]) + "\n"


def _front_matter(card: ModelCard) -> Iterable[str]:
    identifier = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", card.licence)
    yield "---"
    yield f"license: {_yaml(card.licence if identifier else 'other')}"
    yield f"tags: {_yaml(['tip-service', card.kind])}"
    if card.metrics:
        metrics = [
            {"type": each.name, "value": each.value, "args": {"low": each.low, "high": each.high, "n": each.n}}
            for each in card.metrics
        ]
        result = {
            "task": {"type": "reinforcement-learning", "name": "Ranking of tips"},
            "dataset": {"type": "decision-log", "name": card.metrics[0].source},
            "metrics": metrics,
        }
        yield f"model-index: {_yaml([{'name': f'{card.name} {card.version}', 'results': [result]}])}"
    yield "---"


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line: as JSON, with a point in every real number, which YAML needs."""
    match value:
        case dict():
            return f"{{{', '.join(f'{_yaml(key)}: {_yaml(each)}' for key, each in value.items())}}}"
        case list():
            return f"[{', '.join(map(_yaml, value))}]"
        case float():
            return re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))
    return json.dumps(value, ensure_ascii=False)


def _body(card: ModelCard) -> Iterable[str]:
    title = card.name if card.name == card.version else f"{card.name} {card.version}"
    yield f"# {_escape_line(title)}"
    yield from ("", _escape_line(card.purpose))
    if lacking := missing(card):
        yield from ("", f"**This card is incomplete.** Missing: {_escape('; '.join(lacking))}.")
    facts = {
        "Kind": card.kind,
        "Version": card.version,
        "Digest": card.digest or "unknown",
        "Licence": card.licence or "unknown",
        "Contact": card.contact or "unknown",
    }
    yield from _table("", ("", ""), facts.items())
    yield from _table(
        "Inputs", ("input", "type", "range"), ((each.name, each.type, each.range) for each in card.inputs)
    )
    if training := card.training:
        days = "all days" if training.window_days is None else f"the last {training.window_days:,} days"
        rows = {
            "Decisions": f"{training.decisions:,}",
            "From": f"{training.since:%Y-%m-%d %H:%M} UTC",
            "To": f"{training.until:%Y-%m-%d %H:%M} UTC",
            "Learned from": f"{training.learned_from:,} decisions of {days}",
            "Dataset (SHA-256)": training.dataset_sha256,
        }
        yield from _table("Training", ("", ""), rows.items())
    yield from _metrics("Offline metrics", card.metrics)
    yield from _calibration("Calibration", card.calibration)
    yield from _slices("Fairness: gain over the log by slice", card.slices)
    if card.live:
        yield from _metrics("Live metrics", card.live.metrics)
        yield from _calibration("Live calibration", card.live.calibration)
        yield from _slices("Fairness: difference of the live reward by slice", card.live.slices)
        yield from _list("Sources of the live figures", card.live.sources)
    yield from _list("Limits", card.limits)
    yield from _list("Safety", card.safety)
    yield from _table(
        "Rollout history",
        ("event", "at", "actor", "action", "from", "to", "share", "reason"),
        (
            (
                str(each.event),
                f"{each.at:%Y-%m-%d %H:%M}",
                each.actor,
                each.action,
                each.from_stage or "",
                each.to_stage or "",
                "" if each.share is None else f"{each.share:.0%}",
                each.reason,
            )
            for each in card.rollouts
        ),
    )


def _metrics(heading: str, metrics: Iterable[Metric]) -> Iterable[str]:
    columns = ("metric", "value", "low", "high", "n", "source")
    rows = ((each.name, *_numbers(each.value, each.low, each.high), f"{each.n:,}", each.source) for each in metrics)
    return _table(heading, columns, rows)


def _calibration(heading: str, bins: Iterable[CalibrationBin]) -> Iterable[str]:
    columns = ("predicted", "observed", "low", "high", "n")
    rows = ((*_numbers(each.predicted, each.observed, each.low, each.high), f"{each.n:,}") for each in bins)
    return _table(heading, columns, rows)


def _slices(heading: str, slices: Iterable[Slice]) -> Iterable[str]:
    columns = ("slice", "difference", "low", "high", "n", "status")
    rows = ((each.name, *_numbers(each.value, each.low, each.high), f"{each.n:,}", each.status) for each in slices)
    return _table(heading, columns, rows)


def _numbers(*values: float | None) -> tuple[str, ...]:
    return tuple("" if value is None else f"{value:.4g}" for value in values)


def _table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    """Yield a table below its heading; nothing without rows."""
    lines = [f"| {' | '.join(map(_escape, row))} |" for row in rows]
    if lines:
        yield from ("", f"## {heading}") if heading else ()
        yield from ("", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *lines)


def _list(heading: str, items: Sequence[str]) -> Iterable[str]:
    if items:
        yield from ("", f"## {heading}", "", *(f"- {_escape_line(item)}" for item in items))


def _escape_line(text: str) -> str:
    """Return a line of Markdown that renders as this text, which is one line: it begins no heading, list or rule."""
    return re.sub(r"^(\d*)([-+=#.)])", r"\1\\\2", _escape(text))


def _escape(text: str) -> str:
    """Return Markdown that renders as this text within a line or a cell of a table."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(text, quote=False))
