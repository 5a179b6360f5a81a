"""The pages of the model cards, and the cards as JSON and Markdown."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import SecretStr

from ml.platform.dependencies import from_state, require_admin
from ml.platform.errors import TipsError
from ml.platform.navigation import PAGE
from ml.platform.pages import PRIVATE_HEADERS, PageTemplates
from ml.registry.card_markdown import to_markdown
from ml.registry.cards import CalibrationBin, Metric, ModelCard, Slice, missing
from ml.rollouts.cards import CardReader

CardReaderDep = Annotated[CardReader, from_state("cards")]

_TITLES = {"prompt": "Prompt versions", "policy": "Ranking policies", "model": "Language models"}


class CardFormat(StrEnum):
    """The formats of a card."""

    HTML = "html"
    JSON = "json"
    MARKDOWN = "markdown"


def build_router(password: SecretStr | None) -> APIRouter:
    """Return the routes of the pages, protected by `password`; without one, for browsers on this machine only."""
    router = APIRouter(dependencies=[require_admin(password)], include_in_schema=False)
    router.get("/admin/cards", summary="Model cards", tags=[PAGE])(cards_page)
    router.get("/admin/cards/{name:path}")(card_page)
    return router


async def cards_page(request: Request, reader: CardReaderDep) -> HTMLResponse:
    """The purpose, the figures and the limits of each prompt version, ranking policy and language model."""
    try:
        cards, serving_answers = await reader.all(), True
    except TipsError:
        cards, serving_answers = (), False
    kinds = [(title, [card for card in cards if card.kind == kind]) for kind, title in _TITLES.items()]
    return _TEMPLATES.render(request, "cards.html", kinds=kinds, serving_answers=serving_answers)


async def card_page(
    request: Request,
    name: str,
    reader: CardReaderDep,
    card_format: Annotated[CardFormat, Query(alias="format")] = CardFormat.HTML,
) -> Response:
    """Return one card as a page, or as a file to download."""
    card = await reader.find(name)
    if card is None:
        raise HTTPException(HTTPStatus.NOT_FOUND)
    match card_format:
        case CardFormat.JSON:
            return _download(card, card.model_dump_json(indent=1), "application/json", "json")
        case CardFormat.MARKDOWN:
            return _download(card, to_markdown(card), "text/markdown", "md")
        case CardFormat.HTML:
            return _TEMPLATES.render(request, "card.html", card=card)


def _download(card: ModelCard, content: str, media_type: str, ending: str) -> Response:
    disposition = f'attachment; filename="{card.file_name}.{ending}"'
    return Response(content, media_type=media_type, headers=PRIVATE_HEADERS | {"Content-Disposition": disposition})


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _limits(row: Metric | CalibrationBin | Slice) -> str:
    return "–" if row.low is None else f"{_number(row.low)} to {_number(row.high)}"


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "limits": _limits,
    "missing": missing,
    "number": _number,
    "path": lambda name: quote(name, safe=""),
    "share": lambda share: "" if share is None else f"{100 * share:g} %",
    "time": lambda at: f"{at:%-d %B %Y, %H:%M} UTC",
    "whole": lambda number: f"{number:,.0f}",
    "words": lambda name: name.replace("_", " "),
}
_TEMPLATES = PageTemplates(Path(__file__).with_name("templates"), _FILTERS)
