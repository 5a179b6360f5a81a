"""The page that shows a newcomer the whole loop: a tip from every version, as it is written, and reactions to them."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse
from pydantic import SecretStr

from ml.errors import TipsError
from ml.features.definitions import SIGNALS, Choice, Clock, Kind, Language, Number, Scale, Text, Texts, Whole
from ml.guards import JsonOnly, SecondsLeft, admin_only
from ml.recommender import rotation
from ml.recommender.pages import page
from ml.recommender.recommend import Recommender
from ml.recommender.routes import RecommenderDep, react
from ml.recommender.schemas import ReactionResponse, TipRequest
from ml.recommender.serving_client import Usage, Written
from ml.serving.generate import Tip, TipStream
from ml.serving.prompts import PROMPTS
from ml.serving.routes import GeneratorDep, event

PATHS = ("/", "/playground")
"""Guarded by the password, not by keys: a browser sends none."""

GENERATING_PATHS = ("/playground/tips",)

POLICY = "playground"
"""What rows of the page's tips say: whoever looks at it sees every version, so none was drawn."""

REACTIONS = {"helpful": "👍 Helps", "not_helpful": "👎 Does not help"}


class PlaygroundRequest(TipRequest):
    """Ask for a tip from one version."""

    prompt_version: str


@dataclass(frozen=True, slots=True)
class Field:
    """How the page asks for a signal."""

    name: str
    kind: str
    attributes: Mapping[str, Any]
    options: Mapping[str, str]
    hint: str = ""

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()


def router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the page, behind `password`; without one, for browsers on this machine."""
    routes = APIRouter(dependencies=[admin_only(password)], include_in_schema=False)
    routes.get("/")(show)
    routes.post("/playground/tips", dependencies=[JsonOnly])(write)
    routes.post("/playground/reactions", dependencies=[JsonOnly], response_model=ReactionResponse)(react)
    return routes


async def show(request: Request) -> HTMLResponse:
    """Show the page, to a person of its own."""
    return page(
        request,
        "playground.html",
        scripted=True,
        fields=[field(name, signal.kind) for name, signal in SIGNALS.items()],
        versions={version: prompt.description for version, prompt in PROMPTS.items()},
        reactions=REACTIONS,
        user_id=f"playground-{uuid4()}",
    )


async def write(
    body: PlaygroundRequest, generator: GeneratorDep, recommender: RecommenderDep, within: SecondsLeft
) -> EventSourceResponse:
    """Write a tip as /generate streams it; `done` comes when its row is durable, with the id for reactions."""
    started = time.perf_counter()
    stream = await generator.stream(body.signals.known(), body.prompt_version, within=within)
    return EventSourceResponse(_events(stream, started, body, recommender), headers={"Cache-Control": "no-cache"})


async def _events(
    stream: TipStream, started: float, body: PlaygroundRequest, recommender: Recommender
) -> AsyncIterator[bytes]:
    choice = rotation.Choice(body.prompt_version, POLICY, {body.prompt_version: 1.0})
    yield event("meta", asdict(stream.origin))
    async with aclosing(stream.pieces) as pieces:
        try:
            async for piece in pieces:
                if not isinstance(piece, Tip):
                    yield event("delta", {"text": piece})
                    continue
                ms = round((time.perf_counter() - started) * 1000)
                written = Written(**asdict(piece.origin), tip=piece.text, usage=Usage(**asdict(piece.usage)))
                row = await recommender.record(body.user_id, body.signals.known(), choice, written, ms)
                yield event("done", {"tip": row.tip, "tip_id": str(row.tip_id)})
        except TipsError as error:
            yield event("error", error.problem())


def field(name: str, kind: Kind) -> Field:
    """Return how to ask for a signal of a kind."""
    match kind:
        case Number(low, high, unit):
            return Field(name, "number", {"type": "number", "min": low, "max": high, "step": "any"}, {}, f"{unit}s")
        case Whole(low, high, unit):
            return Field(name, "number", {"type": "number", "min": low, "max": high}, {}, f"{unit}s")
        case Scale(top):
            return Field(name, "number", {"type": "number", "min": 1, "max": top}, {}, f"1 to {top}")
        case Choice(options):
            return Field(name, "text", {}, options)
        case Text(longest):
            return Field(name, "text", {"type": "text", "maxlength": longest}, {})
        case Texts():
            return Field(name, "texts", {}, {}, "one a line")
        case Clock():
            return Field(name, "text", {"type": "time"}, {})
        case Language():
            return Field(name, "text", {"type": "text", "placeholder": "en-GB"}, {})
    raise TypeError(f"no way to ask for a {type(kind).__name__}")
