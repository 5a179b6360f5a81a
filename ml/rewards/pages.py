"""The pages for operators: which version helps, to look at and as a table for other programs."""

import csv
import io
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import SecretStr

from ml.features.definitions import SIGNALS
from ml.features.feature_types import Category
from ml.platform.dependencies import require_admin
from ml.rewards import plots
from ml.rewards.report import ALPHA, ReportWindow, RewardReport, Variant
from ml.rewards.routes import ReportDep, ReporterDep
from ml.store.reactions import REACTIONS

PATHS = ("/admin/rewards", "/admin/rewards.csv")
"""Guarded by the password, not by keys: a browser sends none."""

_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_NOTHING_FROM_OUTSIDE = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_CATEGORIES = tuple(
    f"{name}:{option}"
    for name, signal in SIGNALS.items()
    if isinstance(signal.kind, Category)
    for option in signal.kind.options
)
"""Segments to suggest; languages are segments too, but too many to list."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would compute rather than show, at the beginning of a text."""

_BEFORE_REACTIONS = ("prompt_version", "prompt_digest", "label", "tips", "reacted", "counted", "dependent")
_AFTER_REACTIONS = (
    *("reward.estimate", "reward.low", "reward.high", "probability_best"),
    *("comparison.difference.estimate", "comparison.difference.low", "comparison.difference.high"),
    *("comparison.verdict", "comparison.more_tips", "comparison.words"),
    *("input_tokens", "output_tokens", "ms"),
)
"""Columns, each a path into a variant as GET /rewards answers it."""

_HARDLY = 0.001
"""A probability below this, or as close to one, is shown as a bound."""


def render_page(template: str, *, nonce: str = "", **values: Any) -> HTMLResponse:
    """Render a page that nothing from outside can become part of; `nonce` is what its own script has, if it has one."""
    script = f"; script-src 'nonce-{nonce}'; connect-src 'self'" if nonce else ""
    headers = _PRIVATE | {"Content-Security-Policy": _NOTHING_FROM_OUTSIDE + script}
    return HTMLResponse(_TEMPLATES.get_template(template).render(nonce=nonce, **values), headers=headers)


def router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the pages, behind `password`; without one, for browsers on this machine."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    router.get("/admin/rewards")(rewards_page)
    router.get("/admin/rewards.csv")(rewards_csv)
    return router


async def rewards_page(request: Request, report: ReportDep, rewards: ReporterDep) -> HTMLResponse:
    """Show the report that the query asks for."""
    asked = {name: value for name, value in request.query_params.items() if value}
    figures = await to_thread.run_sync(plots.draw, report.variants) if report.variants else None
    return render_page(
        "rewards.html",
        report=report,
        tips=sum(variant.tips for variant in report.variants),
        colours={variant.label: plots.colour(place) for place, variant in enumerate(report.variants)},
        figures=figures,
        kinds=_kinds(report),
        asked=asked,
        query=urlencode(asked),
        categories=_CATEGORIES,
        rewards=REACTIONS,
        waits=rewards.reaction_window / timedelta(hours=1),
        alpha=ALPHA,
    )


async def rewards_csv(report: ReportDep) -> Response:
    """Write a row for each variant, with all that GET /rewards says about it but its days."""
    columns = [*_BEFORE_REACTIONS, *(f"reactions.{kind}" for kind in _kinds(report)), *_AFTER_REACTIONS]
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(_value(variant, column)) for column in columns] for variant in report.variants)
    headers = _PRIVATE | {"Content-Disposition": 'attachment; filename="rewards.csv"'}
    return Response(written.getvalue(), media_type="text/csv", headers=headers)


def _kinds(report: RewardReport) -> list[str]:
    """Return all kinds of reactions that there are or have been."""
    return list(dict.fromkeys([*REACTIONS, *(kind for variant in report.variants for kind in variant.reactions)]))


def _value(variant: Variant, column: str) -> Any:
    """Return what is at a path such as `comparison.difference.low`; None where there is no comparison."""
    value: Any = variant
    for name in column.split("."):
        value = value.get(name, 0) if isinstance(value, Mapping) else value and getattr(value, name)
    return value


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _window_in_words(window: ReportWindow) -> str:
    match window.first, window.last:
        case None, None:
            return "of all time"
        case first, None:
            return f"since {_day(first)} (UTC)"
        case None, last:
            return f"until {_day(last)} (UTC)"
        case first, last:
            return f"of {_day(first)} (UTC)" if first == last else f"from {_day(first)} to {_day(last)} (UTC)"


def _day(day: date | None) -> str:
    return f"{day.day} {day:%B %Y}" if day else ""


def _probability(share: float) -> str:
    if share < _HARDLY:
        return f"<{_HARDLY:.1%}"
    return f">{1 - _HARDLY:.1%}" if share > 1 - _HARDLY else f"{share:.1%}"


_FILTERS: Mapping[str, Callable[[Any], str]] = {
    "whole": lambda number: f"{number:,.0f}",
    "percent": lambda share: f"{100 * share:.1f}%",
    "points": lambda share: f"{100 * share:+.1f}",
    "probability": _probability,
    "window": _window_in_words,
}
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= _FILTERS
