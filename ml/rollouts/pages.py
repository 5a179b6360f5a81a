"""The page of rollouts: the stages, gates and events of each, and the forms that change them.

A form names the last event that the page showed, so that nobody decides on a state that has changed since.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import SecretStr

from ml.experiments.guardrails import SliceResult
from ml.experiments.rollout_state import STAGES, Kind, Position, RolloutEvent
from ml.platform.dependencies import require_admin
from ml.platform.errors import RolloutConflict, RolloutRefused, TipsError, UnknownRollout, UnprocessableRequest
from ml.platform.navigation import PAGE
from ml.platform.pages import PageTemplates
from ml.rollouts.forms import ActorDep, apply_form, read_form, require_form
from ml.rollouts.gates import GATES, UNKNOWN, GateResult
from ml.rollouts.holdout import HoldoutComparison
from ml.rollouts.moves import MAX_LENGTHS
from ml.rollouts.operations import Rollouts
from ml.rollouts.reports import ProposalReport, RolloutOverview, RolloutReport
from ml.rollouts.routes import HoldoutReaderDep, RolloutsDep

MAX_EVENTS = 20
"""The recent events that the page shows."""

_TITLES: Mapping[Kind, str] = {"prompt": "Prompt versions", "policy": "Ranking policies"}
_MARKS = {"passed": "✓", "failed": "✗", "unknown": "?"}
_SLICE_RESULTS = {"not harmed": "passed", "harmed": "failed", "unknown": "unknown"}
_VERBS = {
    "start": "started",
    "promote": "promoted",
    "ramp": "given a larger share",
    "pause": "paused",
    "resume": "resumed",
    "rollback": "rolled back",
    "initial": "recorded as the first champion",
    "change": "recorded as the language model",
}


@dataclass(frozen=True, slots=True)
class KindView:
    """The part of the page about prompt versions, or about ranking policies.

    `champion`: None before the first one. `previous`: the champion before, "" without one. `reports`: of the open
    rollouts. `proposals`: of batch jobs. `startable`: the versions that serving has and that are not in use.
    """

    kind: Kind
    title: str
    champion: Position | None
    previous: str
    reports: tuple[RolloutReport, ...]
    proposals: tuple[ProposalReport, ...]
    startable: tuple[str, ...]


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page, protected by `password`; without one, read-only and on this machine only."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)

    async def rollouts_page(
        request: Request, rollouts: RolloutsDep, reader: HoldoutReaderDep, *, holdout: bool = False
    ) -> HTMLResponse:
        """Which version is where, the gates of its next step, and who changed what."""
        comparison = await reader.compare() if holdout else None
        return await _page(request, rollouts, can_act=password is not None, comparison=comparison)

    async def change_rollout(request: Request, rollouts: RolloutsDep, actor: ActorDep) -> Response:
        reason = ""
        try:
            form = await read_form(request)
            reason = form.reason
            event = await apply_form(form, rollouts, actor)
        except (RolloutConflict, RolloutRefused, UnknownRollout, UnprocessableRequest) as error:
            return await _page(request, rollouts, can_act=True, refusal=error, reason=reason)
        root = request.scope.get("root_path", "")
        return RedirectResponse(f"{root}/admin/rollouts?event={event.id}#rollout-{event.rollout}", 303)

    router.get("/admin/rollouts", summary="Rollouts", tags=[PAGE])(rollouts_page)
    router.post("/admin/rollouts", dependencies=[require_form(password)])(change_rollout)
    return router


async def _page(
    request: Request,
    rollouts: Rollouts,
    *,
    can_act: bool,
    comparison: HoldoutComparison | None = None,
    refusal: TipsError | None = None,
    reason: str = "",
) -> HTMLResponse:
    overview = await rollouts.reports.overview()
    events, state = await rollouts.reports.state()
    startable = await _startable(rollouts, overview)
    kinds = []
    for kind, title in _TITLES.items():
        previous = state.track(kind).previous
        kinds.append(
            KindView(
                kind=kind,
                title=title,
                champion=overview.champions.get(kind),
                previous=previous[-1].version if previous else "",
                reports=tuple(report for report in overview.open if report.kind == kind),
                proposals=tuple(report for report in overview.proposals if report.proposal.kind == kind),
                startable=startable.get(kind, ()) if startable else (),
            )
        )
    asked = request.query_params.get("event", "")
    page = _TEMPLATES.render(
        request,
        "rollouts.html",
        overview=overview,
        kinds=kinds,
        serving_answers=startable is not None,
        all_stages=STAGES,
        marks=_MARKS,
        slice_results=_SLICE_RESULTS,
        summaries={name: gate.summary for name, gate in GATES.items()},
        events=events[::-1][:MAX_EVENTS],
        ended=[(last, [event for event in events if event.rollout == last.rollout]) for last in overview.ended],
        done=next((event for event in events if str(event.id) == asked), None),
        can_act=can_act,
        comparison=comparison,
        max_reason=MAX_LENGTHS["reason"],
        problem=refusal.detail if refusal else "",
        reason=reason,
    )
    page.status_code = int(refusal.status) if refusal else page.status_code
    return page


async def _startable(rollouts: Rollouts, overview: RolloutOverview) -> Mapping[Kind, tuple[str, ...]] | None:
    """Return the versions that serving has and that are not in use, by kind; None if serving does not answer."""
    try:
        catalogue = await rollouts.catalogue()
    except TipsError:
        return None
    # Without a champion, the first rollout makes the default the champion.
    defaults: Mapping[Kind, str] = {"prompt": catalogue.default_prompt_version, "policy": catalogue.default_policy}
    champions = {**defaults} | {kind: position.version for kind, position in overview.champions.items()}
    used = {(report.kind, report.version) for report in overview.open} | {*champions.items()}
    listed: Mapping[Kind, Iterable[str]] = {"prompt": catalogue.prompts, "policy": catalogue.policies}
    return {kind: tuple(each for each in versions if (kind, each) not in used) for kind, versions in listed.items()}


# Filters


def _result(gate: GateResult) -> str:
    if gate.passed:
        return "passed"
    return "unknown" if gate.figure == UNKNOWN else "failed"


def _share(share: float) -> str:
    return f"{100 * share:g} %"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%-d %B %Y, %H:%M} UTC"


def _next_step(report: RolloutReport) -> str:
    if report.move is None:
        return ""
    if report.move.stage == "champion":
        return "champion, with all tips"
    of_whom = f" of the tips of users in {report.move.segment}" if report.move.segment else " of all tips"
    return f"{report.move.stage}, with {_share(report.move.share)}{of_whom}"


def _sentence(event: RolloutEvent) -> str:
    subject = f"{event.version} {_VERBS[event.action]}"
    if event.action in {"initial", "change", "pause", "resume"}:
        return subject
    share = f" with {_share(event.share)} of tips" if event.to_stage == "canary" else ""
    if event.from_stage == event.to_stage:
        return f"{subject}: {event.to_stage}{share}"
    return f"{subject}: {event.from_stage} → {event.to_stage}{share}"


def _gating(event: RolloutEvent) -> str:
    """Return whether the gates of a promotion passed; "" for other events, which have none."""
    if event.action in {"initial", "change"}:
        return "not gated"
    if event.action not in {"start", "promote", "ramp"}:
        return ""
    return "gates passed" if event.gated else "forced"


def _slice_summary(slices: Sequence[SliceResult]) -> str:
    counts = {status: sum(each.status == status for each in slices) for status in ("harmed", "not harmed", "unknown")}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "evidence": lambda evidence: json.dumps(evidence, indent=1, ensure_ascii=False, default=str),
    "gating": _gating,
    "next_step": _next_step,
    "path": lambda name: quote(name, safe=""),
    "percent": lambda share: f"{100 * share:.1f} %",
    "points": lambda share: f"{100 * share:+.1f}",
    "result": _result,
    "sentence": _sentence,
    "share": _share,
    "slice_summary": _slice_summary,
    "time": _time,
    "whole": lambda number: f"{number:,.0f}",
    "words": lambda name: name.replace("_", " "),
}
_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"), _FILTERS)
