"""`tips cards`: show the model cards, write them to files, and verify their figures."""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from ml.cli.progress import working
from ml.cli.stores import (
    database_name,
    decision_log,
    exposure_reported,
    needs_recommender_extra,
    recommender_settings,
    training_data,
    using_offline_store,
    with_tip_store,
)
from ml.platform.clock import utc_now
from ml.platform.errors import UpstreamFailed, UpstreamRefused, UpstreamUnreachable
from ml.platform.settings import ConfigurationError
from ml.registry.artifacts import RankingPolicy, UnusablePolicyError
from ml.registry.card_markdown import to_markdown
from ml.registry.cards import ModelCard, find_card, missing
from ml.registry.policies import load_policy, validate_policy_source
from ml.serving.app import check_settings, load_policies
from ml.serving.cards import serving_cards
from ml.serving.schemas import CardsResponse
from ml.serving.settings import ServingSettings

TIMEOUT_SECONDS = 10.0
"""Of GET /cards."""
SCHEMA = "model-card.schema.json"

app = typer.Typer(invoke_without_command=True)


@app.callback()
def cards(context: typer.Context) -> None:
    """List the model cards: of the prompt versions, the ranking policies and the models."""
    if context.invoked_subcommand:
        return
    table = Table("kind", "name", "version", "missing")
    for card in all_cards():
        cells = (card.kind, card.name, card.version, "; ".join(missing(card)) or "nothing")
        table.add_row(*map(Text, cells))  # not markup
    Console().print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name or a version that `tips cards` lists.")]) -> None:
    """Show one model card."""
    known = all_cards()
    card = find_card(known, name)
    if card is None:
        sys.exit(f"{name} is not one card; the known versions are {', '.join(each.version for each in known)}.")
    (card,) = completed([card])
    markdown = to_markdown(card)
    if sys.stdout.isatty():
        Console().print(Markdown(markdown.partition("\n---\n")[2]))
    else:
        print(markdown, end="")


@app.command()
def export(directory: Annotated[Path, typer.Argument(metavar="DIR", help="It is created if needed.")]) -> None:
    """Write each model card as card.json and README.md to a directory of its own in DIR, and the JSON schema."""
    exported = completed(all_cards())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        schema = json.dumps(ModelCard.model_json_schema(), indent=1)
        (directory / SCHEMA).write_text(f"{schema}\n", encoding="utf-8")
        for card in exported:
            folder = directory / card.file_name
            folder.mkdir(exist_ok=True)
            (folder / "card.json").write_text(f"{card.model_dump_json(indent=1)}\n", encoding="utf-8")
            (folder / "README.md").write_text(to_markdown(card), encoding="utf-8")
    except OSError:
        raise ConfigurationError(f"{directory} cannot be written.") from None
    print(f"{len(exported)} cards in {directory}")


@app.command()
def verify(
    source: Annotated[
        str, typer.Argument(metavar="POLICY", help="A policy file, models:/NAME@ALIAS or models:/NAME/N.")
    ],
) -> None:
    """Train a policy again, on the stored tips that its card names, and say whether it is the same to the last bit."""
    try:
        policy = load_policy(validate_policy_source(source), ServingSettings.from_environment().mlflow_tracking_uri)
    except UnusablePolicyError as error:
        raise ConfigurationError(f"The policy {source} {error}.") from None
    except ValueError as error:
        raise typer.BadParameter(f"{source!r} {error}") from None
    with using_offline_store():
        from ml.pipelines.training import train_with
    training = policy.card.training
    if training is None:
        sys.exit(f"{policy.name} {policy.version} does not say what it was trained with: train it again.")
    log = decision_log().sample(training.share)
    with working("Reading decisions"):
        # The first and the last decision are included.
        before = training.until + timedelta(microseconds=1)
        data = training_data(log, training.since.timestamp(), before.timestamp())
    if data.sha256 != training.dataset_sha256:
        sys.exit(
            f"The {data.decisions:,} tips in {database_name()} are not the {training.decisions:,} of the card as they "
            "were: reactions have arrived since, tips were deleted, or the digest of a prompt version has changed. Or "
            "the policy was trained by another release."
        )
    with working("Training"), using_offline_store():
        version = RankingPolicy.from_bytes(train_with(data, name=policy.name)).version
    if version != policy.version:
        sys.exit(
            f"{policy.name} {policy.version} was not trained from these tips alone, or by another release: {version}."
        )
    print(f"{policy.name} {version}: the model and all figures follow from {training.decisions:,} stored tips.")


def all_cards() -> tuple[ModelCard, ...]:
    """Return the cards of the service at SERVING_URL, if it is set; otherwise those that the settings of serving give.

    Raises TipsError if that service does not answer with cards, and ConfigurationError for wrong settings.
    """
    settings = recommender_settings()
    if settings.serving_url:
        key = settings.serving_api_key
        return fetch_cards(settings.serving_url, key.get_secret_value() if key else None)
    serving_settings = ServingSettings.from_environment()
    check_settings(serving_settings)
    return serving_cards(serving_settings, load_policies(serving_settings).loaded.by_version.values())


def completed(cards: Sequence[ModelCard]) -> list[ModelCard]:
    """Return cards with their figures about real users and their rollouts; without a database, as they are."""
    try:
        database_name()
    except ConfigurationError as error:
        print(f"Without figures about real users: {error}", file=sys.stderr)
        return [*cards]
    with needs_recommender_extra():
        from ml.rollouts.cards import CardStore
        from ml.store.tips import TipStore

    async def complete(store: TipStore) -> list[ModelCard]:
        card_store = CardStore(store.database, store.reaction_window, exposure_reported())
        return [await card_store.complete(card, utc_now()) for card in cards]

    return with_tip_store(complete)


def fetch_cards(url: str, key: str | None) -> tuple[ModelCard, ...]:
    """Return the cards of the serving at `url`. Raises TipsError if it does not answer with cards."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(f"{url.rstrip('/')}/cards", headers=headers, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError:
        raise UpstreamUnreachable("Serving cannot be reached.") from None
    if response.is_client_error:
        raise UpstreamRefused("Serving refuses this request or SERVING_API_KEY, or is of an earlier release.")
    try:
        return CardsResponse.model_validate_json(response.content).cards
    except ValidationError:
        raise UpstreamFailed("Serving's answer is not a list of model cards.") from None
