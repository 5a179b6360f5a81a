"""The page that shows a newcomer the whole loop: a tip from every version, as it is written, and reactions to them."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse
from pydantic import SecretStr

from ml.experiments.policies import PLAYGROUND, POLICIES
from ml.features.definitions import SIGNALS
from ml.features.feature_types import Category, FeatureType, Integer, Language, Number, Rating, Text, Texts, TimeOfDay
from ml.platform.dependencies import CallerTimeout, RequireJson, require_admin
from ml.platform.pages import PageTemplates
from ml.recommender.routes import RecommenderDep, react
from ml.recommender.schemas import ReactionResponse, TipRequest
from ml.recommender.selection import PromptSelection
from ml.recommender.serving_client import GeneratedTip, TokenCounts
from ml.serving.generate import Tip
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GeneratorDep, event_stream

PATHS = ("/", "/playground")
"""Guarded by the password, not by keys: a browser sends none."""

GENERATION_PATHS = frozenset({"/playground/tips"})

_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"))

REACTIONS = {"helpful": "Helps", "not_helpful": "Does not help"}


class PlaygroundRequest(TipRequest):
    """Ask for a tip from one version."""

    prompt_version: str


@dataclass(frozen=True, slots=True)
class FormField:
    """How the page asks for a signal."""

    name: str
    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page, behind `password`; without one, for browsers on this machine."""
    routes = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    routes.get("/")(show)
    routes.post("/playground/tips", dependencies=[RequireJson])(write)
    routes.post("/playground/reactions", dependencies=[RequireJson], response_model=ReactionResponse)(react)
    return routes


async def show() -> HTMLResponse:
    """Show the page, to a person of its own."""
    return _TEMPLATES.render(
        "playground.html",
        nonce=secrets.token_urlsafe(16),
        fields=[form_field(name, signal.type) for name, signal in SIGNALS.items()],
        versions={version: prompt.description for version, prompt in PROMPTS.items()},
        reactions=REACTIONS,
        user_id=f"playground-{uuid4()}",
    )


async def write(
    body: PlaygroundRequest, generator: GeneratorDep, recommender: RecommenderDep, timeout: CallerTimeout
) -> EventSourceResponse:
    """Write a tip as /generate streams it; `done` comes when its row is durable, with the id for reactions."""
    started = time.perf_counter()
    signals = body.signals.known()
    stream = await generator.stream(signals, body.prompt_version, timeout=timeout)

    async def stored(tip: Tip) -> Mapping[str, Any]:
        ms = round((time.perf_counter() - started) * 1000)
        options = {body.prompt_version: 1.0}
        selection = PromptSelection(body.prompt_version, PLAYGROUND, POLICIES[PLAYGROUND].version, options)
        generated = GeneratedTip(**asdict(tip.origin), tip=tip.text, usage=TokenCounts(**asdict(tip.usage)))
        row = await recommender.record(body.user_id, signals, selection, generated, ms)
        return {"tip": row.tip, "tip_id": str(row.tip_id)}

    return event_stream(stream, stored)


def form_field(name: str, kind: FeatureType) -> FormField:
    """Return how to ask for a signal of a kind; a kind that is not known here is asked for as text."""
    match kind:
        case Number(low, high, unit):
            bounds = {"type": "number", "min": low, "max": high, "step": "any"}
            return FormField(name, "number", bounds, hint=_unit(name, unit))
        case Integer(low, high, unit):
            return FormField(name, "number", {"type": "number", "min": low, "max": high}, hint=_unit(name, unit))
        case Rating(top):
            return FormField(name, "number", {"type": "number", "min": 1, "max": top}, hint=f"1 to {top}")
        case Category(options):
            return FormField(name, "text", options=options)
        case Texts():
            return FormField(name, "texts", hint="one a line")
    attributes: dict[type[FeatureType], dict[str, Any]] = {
        TimeOfDay: {"type": "time"},
        Language: {"placeholder": "en-GB"},
    }
    longest = {"maxlength": kind.longest} if isinstance(kind, Text) else {}
    return FormField(name, "text", attributes.get(type(kind), {}) | longest)


def _unit(name: str, unit: str) -> str:
    """The unit, unless the name has it."""
    return "" if unit.replace(" ", "_") in name else f"{unit}s"
