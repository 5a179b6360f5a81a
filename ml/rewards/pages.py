"""The reward page, and its tables as CSV."""

import csv
import io
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import SecretStr

from ml.platform.dependencies import require_admin
from ml.platform.navigation import PAGE
from ml.platform.pages import PRIVATE_HEADERS, PageTemplates
from ml.rewards import plots
from ml.rewards.comparison import ALPHA
from ml.rewards.report import ReportWindow, RewardReport
from ml.rewards.routes import REPORT_SEGMENTS, ReportDep, ReporterDep, UserComparisonsDep
from ml.rewards.variants import Variant
from ml.store.reactions import REACTIONS

_SUGGESTED_SEGMENTS = tuple(f"{name}:{value}" for name, values in REPORT_SEGMENTS.items() for value in values)
"""The segments that the form suggests; languages are segments too, but too many for a list."""

_FORMULA = re.compile(r"[\s\x00-\x1f\x7f-\x9f]*[=+\-@＝＋－＠]|[\x00-\x1f\x7f-\x9f]")
"""The start of a text that a spreadsheet may read as a formula.

Full-width signs are formulas in East Asian locales, and spreadsheets skip spaces and control characters before a sign.
"""

_BEFORE_REACTIONS = (
    *("prompt_version", "prompt_digest", "label"),
    *("tips", "counted", "young", "dependent", "unseen", "exposure_unknown", "reacted"),
)
_AFTER_REACTIONS = (
    *("reward.estimate", "reward.low", "reward.high"),
    *("comparison.difference.estimate", "comparison.difference.low", "comparison.difference.high"),
    *("comparison.verdict", "comparison.tips", "comparison.more_tips", "comparison.words"),
    *("input_tokens", "output_tokens", "ms"),
)
"""CSV columns before and after those of the reactions, each a path into a variant of GET /rewards."""

_STEPS = {
    "drawn": "Tips are not stored as often as their versions were drawn",
    "written": "Tips of some versions are written more often than those of others",
    "seen": "Tips of some versions are seen more often than those of others",
}
"""The words of an alarm, by the step of the funnel."""


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page, protected by `password`; without one, for browsers on this machine only."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    router.get("/admin/rewards", summary="Rewards", tags=[PAGE])(rewards_page)
    router.get("/admin/rewards/users")(user_comparisons)
    router.get("/admin/rewards.csv")(rewards_csv)
    return router


async def rewards_page(request: Request, report: ReportDep, reporter: ReporterDep) -> HTMLResponse:
    """Which prompt version helps more: rates, verdicts and counts."""
    query_values = {name: value for name, value in request.query_params.items() if value}
    figures = await to_thread.run_sync(plots.draw_plots, report.variants) if report.counted else None
    kinds = _kinds(report)
    return _TEMPLATES.render(
        request,
        "rewards.html",
        nonce=secrets.token_urlsafe(16),
        report=report,
        steps=_STEPS,
        colours={variant.label: plots.colour(index) for index, variant in enumerate(report.variants)},
        figures=figures,
        kinds=kinds,
        reaction_totals={kind: sum(variant.reactions.get(kind, 0) for variant in report.variants) for kind in kinds},
        query_values=query_values,
        query=urlencode(query_values),
        segments=_SUGGESTED_SEGMENTS,
        rewards=REACTIONS,
        window_hours=reporter.reaction_window / timedelta(hours=1),
        alpha=ALPHA,
    )


async def user_comparisons(request: Request, report: ReportDep, comparisons: UserComparisonsDep) -> HTMLResponse:
    """Return the comparisons per user as a part of the page, which loads it later because it reads all tips."""
    return _TEMPLATES.render(request, "users.html", report=report, comparisons=comparisons)


async def rewards_csv(report: ReportDep) -> Response:
    """Return a row per variant, with all values of GET /rewards except the days."""
    columns = [*_BEFORE_REACTIONS, *(f"reactions.{kind}" for kind in _kinds(report)), *_AFTER_REACTIONS]
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(_value(variant, column)) for column in columns] for variant in report.variants)
    headers = PRIVATE_HEADERS | {"Content-Disposition": 'attachment; filename="rewards.csv"'}
    return Response(content.getvalue(), media_type="text/csv", headers=headers)


def _kinds(report: RewardReport) -> list[str]:
    """Return all kinds of reactions, including stored ones that are no longer defined."""
    return list(dict.fromkeys([*REACTIONS, *(kind for variant in report.variants for kind in variant.reactions)]))


def _value(variant: Variant, column: str) -> Any:
    """Return the value at a path such as `comparison.difference.low`; None if there is no comparison."""
    value: Any = variant
    for name in column.split("."):
        value = value.get(name, 0) if isinstance(value, Mapping) else value and getattr(value, name)
    return value


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _weighted_mean(variants: Sequence[Variant], name: str) -> float:
    """Return the mean per tip of all variants, of which `name` is the mean per tip of one."""
    return float(sum(getattr(variant, name) * variant.tips for variant in variants)) / sum(
        variant.tips for variant in variants
    )


def _format_window(window: ReportWindow) -> str:
    match window.first, window.last:
        case None, None:
            return "of all time"
        case first, None:
            return f"since {_format_day(first)} (UTC)"
        case None, last:
            return f"until {_format_day(last)} (UTC)"
        case first, last:
            one_day = f"of {_format_day(first)} (UTC)"
            return one_day if first == last else f"from {_format_day(first)} to {_format_day(last)} (UTC)"


def _format_day(day: date | None) -> str:
    return f"{day.day} {day:%B %Y}" if day else ""


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "whole": lambda number: f"{number:,.0f}",
    "percent": lambda share: f"{100 * share:.1f}%",
    "p_value": lambda p_value: f"p = {p_value:.2g}",
    "points": lambda share: f"{100 * share:+.1f}",
    "window": _format_window,
    "weighted_mean": _weighted_mean,
}
_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"), _FILTERS)
