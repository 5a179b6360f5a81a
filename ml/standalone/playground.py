"""The start page: it streams a tip of every prompt version, and stores the visitor's reactions to them."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse
from pydantic import SecretStr

from ml.experiments.policies import PLAYGROUND, POLICIES
from ml.features.definitions import SIGNALS
from ml.features.feature_types import Category, FeatureType, Integer, Language, Number, Rating, TimeOfDay
from ml.features.text_types import Text, Texts
from ml.platform.dependencies import CallerTimeout, json_body, require_admin
from ml.platform.navigation import PAGE
from ml.platform.pages import PageTemplates
from ml.recommender.routes import RecommenderDep, expose, react
from ml.recommender.schemas import ExposureResponse, ReactionResponse, TipRequest
from ml.recommender.selection import PromptSelection
from ml.recommender.serving_responses import GeneratedTip, TokenCounts
from ml.serving.generate import Tip
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GeneratorDep, event_stream

EXAMPLES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Short night": {
            "goal": "get through the day without a crash",
            "mood": "low",
            "energy": 3,
            "sleep_hours": 4.5,
            "local_time": "08:15",
        },
        "Day of meetings": {
            "stress": 8,
            "minutes_since_break": 150,
            "meetings_left_today": 4,
            "activity": "working",
            "local_time": "11:30",
        },
        "Cannot switch off": {
            "goal": "fall asleep earlier",
            "stress": 6,
            "activity": "relaxing",
            "local_time": "22:40",
        },
        "Hardly any steps": {
            "energy": 5,
            "steps_today": 900,
            "activity": "sitting",
            "local_time": "15:20",
            "recent_tips": ["Drink a glass of water before your next call."],
        },
        "Back after two weeks": {
            "goal": "start running again",
            "mood": "okay",
            "days_since_last_visit": 14,
            "weekday": "saturday",
        },
        "On a streak": {
            "mood": "great",
            "energy": 8,
            "steps_today": 9500,
            "streak_days": 21,
            "activity": "walking",
        },
    }
)
"""Situations for the form: from the label of each to its signals."""

REACTION_LABELS = {"helpful": "Helps", "not_helpful": "Does not help"}

_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"))


class PlaygroundRequest(TipRequest):
    """Request for a tip of one prompt version."""

    prompt_version: str


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page. They need `password`; if it is None, the browser must run on this machine."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    router.get("/", summary="Start", tags=[PAGE])(show_page)
    router.post("/playground/tips")(stream_tip)
    router.post("/playground/exposures", response_model=ExposureResponse)(expose)
    router.post("/playground/reactions", response_model=ReactionResponse)(react)
    return router


async def show_page(request: Request) -> HTMLResponse:
    """A tip from every prompt version for a situation that you describe."""
    return _TEMPLATES.render(
        request,
        "playground.html",
        nonce=secrets.token_urlsafe(16),
        fields=[form_field(name, signal.type) for name, signal in SIGNALS.items()],
        examples=EXAMPLES,
        versions={version: prompt.description for version, prompt in PROMPTS.items()},
        reactions=REACTION_LABELS,
        user_id=f"playground-{uuid4()}",
    )


async def stream_tip(
    body: Annotated[PlaygroundRequest, json_body(PlaygroundRequest)],
    generator: GeneratorDep,
    recommender: RecommenderDep,
    timeout: CallerTimeout,
) -> EventSourceResponse:
    """Stream a tip as /generate does; the `done` event follows when the tip is durable, and has its id."""
    started = time.perf_counter()
    signals = body.signals.known()
    stream = await generator.stream(signals, body.prompt_version, timeout=timeout)

    async def store(tip: Tip) -> Mapping[str, Any]:
        ms = round((time.perf_counter() - started) * 1000)
        options = {body.prompt_version: 1.0}
        selection = PromptSelection(body.prompt_version, PLAYGROUND, POLICIES[PLAYGROUND].version, options)
        generated = GeneratedTip(**asdict(tip.origin), tip=tip.text, usage=TokenCounts(**asdict(tip.usage)))
        record = await recommender.record(body.user_id, signals, selection, generated, ms)
        return {"tip": record.tip, "tip_id": str(record.tip_id)}

    return event_stream(stream, store)


@dataclass(frozen=True, slots=True)
class FormField:
    """The form field of a signal.

    `value_type`: how the page converts the input: `text`, `number`, or `texts` (a list with one text per line).
    `attributes`: of the HTML input element. `options`: from each value to its label, for a selection.
    """

    name: str
    value_type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()


def form_field(name: str, feature_type: FeatureType) -> FormField:
    """Return the form field of a signal; a feature type without a case of its own gets a text field."""
    value_type, hint = "text", ""
    attributes: Mapping[str, Any] = {}
    options: Mapping[str, str] = {}
    match feature_type:
        case Number(low, high, unit):
            value_type, attributes = "number", {"type": "number", "min": low, "max": high, "step": "any"}
            hint = _unit_hint(name, unit)
        case Integer(low, high, unit):
            value_type, attributes = "number", {"type": "number", "min": low, "max": high}
            hint = _unit_hint(name, unit)
        case Rating(highest):
            value_type, attributes = "number", {"type": "number", "min": 1, "max": highest}
            hint = f"1 to {highest}"
        case Category(options):
            pass
        case Texts():
            value_type, hint = "texts", "one per line"
        case Text(max_length):
            attributes = {"maxlength": max_length}
        case TimeOfDay():
            attributes = {"type": "time"}
        case Language():
            attributes = {"placeholder": "en-GB"}
    return FormField(name, value_type, attributes, options, hint)


def _unit_hint(name: str, unit: str) -> str:
    """Return the unit in the plural, or nothing if the name contains it."""
    return "" if unit.replace(" ", "_") in name else f"{unit}s"
