"""The model cards that serving knows, and GET /cards."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from ml.features.definitions import SIGNALS
from ml.platform.settings import ConfigurationError
from ml.registry.cards import ModelCard, missing
from ml.registry.policies import UniformRanker, load_policy
from ml.serving.app import create_app
from ml.serving.cards import serving_cards
from ml.serving.prompts import PROMPTS
from ml.serving.published_weights import QWEN
from ml.serving.schemas import CardsResponse
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings
from tests.policies import policy, policy_with_figures
from tests.server import TestClient

CONTACT = "ml@example.org"
HOSTED = ServingSettings(
    tip_model="openai/gpt-4o-mini", tip_model_fallbacks=("ollama/a:7b", EMBEDDED_MODEL), card_contact=CONTACT
)


def by_version(cards: tuple[ModelCard, ...]) -> dict[str, ModelCard]:
    found = {card.version: card for card in cards}
    assert len(found) == len(cards)
    return found


def test_every_prompt_version_has_a_complete_card() -> None:
    cards = by_version(serving_cards(HOSTED, [UniformRanker()]))
    for version, prompt in PROMPTS.items():
        card = cards[version]
        assert (card.kind, card.name, card.digest, card.purpose) == (
            "prompt",
            version,
            prompt.digest,
            prompt.description,
        )
        assert [each.name for each in card.inputs] == [*SIGNALS]
        assert missing(card) == ()


def test_every_configured_model_has_a_complete_card() -> None:
    cards = {card.version: card for card in serving_cards(HOSTED, []) if card.kind == "model"}
    assert [*cards] == ["openai/gpt-4o-mini", "ollama/a:7b", EMBEDDED_MODEL]
    assert all(missing(card) == () for card in cards.values())
    assert "provider openai" in cards["openai/gpt-4o-mini"].licence
    assert cards["openai/gpt-4o-mini"].digest is None
    assert (cards[EMBEDDED_MODEL].licence, cards[EMBEDDED_MODEL].digest) == ("apache-2.0", QWEN.sha256)


def test_of_a_weights_file_of_the_operator_nothing_is_claimed(tmp_path: Path) -> None:
    file = tmp_path / "secret-name.gguf"
    file.touch()
    (card,) = (
        card for card in serving_cards(ServingSettings(embedded_model_path=file), []) if card.version == EMBEDDED_MODEL
    )
    assert card.digest is None
    assert card.licence != QWEN.licence
    assert "secret-name" not in card.model_dump_json()


def test_a_loaded_policy_has_the_card_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(policy_with_figures())
    (tmp_path / "bare").write_bytes(policy())
    full, bare = (load_policy(str(tmp_path / name), "") for name in ("full", "bare"))
    cards = by_version(serving_cards(HOSTED, [full, bare, full, UniformRanker()]))
    assert missing(cards[full.version]) == missing(cards["uniform"]) == ()
    assert cards[full.version].training == full.card.training
    assert full.card.held_out is not None
    assert cards[full.version].slices == full.card.held_out.slices
    assert {"mood", "stress", "prompt_version", "tip"} <= {each.name for each in cards[full.version].inputs}
    assert "recent_tips" not in {each.name for each in cards[full.version].inputs}
    assert [each.partition(":")[0] for each in missing(cards[bare.version])] == ["metrics", "calibration", "slices"]


def test_without_a_contact_every_card_says_which_setting_is_missing() -> None:
    cards = serving_cards(ServingSettings(), [])
    assert {missing(card) for card in cards} == {("contact: set CARD_CONTACT",)}


def test_the_route_answers_the_cards_to_callers_with_a_key(tmp_path: Path) -> None:
    (tmp_path / "policy").write_bytes(policy_with_figures())
    settings = HOSTED.model_copy(
        update={"score_policy": str(tmp_path / "policy"), "tip_model_fallbacks": (), "api_keys": (SecretStr("k" * 20),)}
    )
    loaded = load_policy(str(tmp_path / "policy"), "")
    with TestClient(create_app(settings)) as http:
        assert http.get("/cards").status_code == 401
        answer = http.get("/cards", headers={"Authorization": f"Bearer {'k' * 20}"})
    assert CardsResponse.model_validate_json(answer.content).cards == serving_cards(settings, [loaded])
    card = next(each for each in answer.json()["cards"] if each["version"] == loaded.version)
    assert {"from", "to"} <= card["training"].keys()


def test_the_schema_of_a_card_is_in_the_openapi_document() -> None:
    schemas = create_app(ServingSettings(tip_model="openai/none")).openapi()["components"]["schemas"]
    assert schemas["ModelCard"]["properties"].keys() == ModelCard.model_fields.keys()


@pytest.mark.parametrize("value", ["x" * 201, "a\tb"])
def test_a_contact_that_is_not_one_line_stops_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CARD_CONTACT", value)
    with pytest.raises(ConfigurationError, match=r"CARD_CONTACT: .* should be at most 200 printable characters"):
        ServingSettings.from_environment()
