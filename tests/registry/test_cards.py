"""Model cards: what is missing on them, and their JSON."""

import json
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from ml.features.definitions import SIGNALS
from ml.registry.cards import ModelCard, describe_inputs, find_card, missing
from tests.registry.example_cards import EVENT, card

SCHEMA = json.loads(json.dumps(ModelCard.model_json_schema()))


# What is missing


def test_a_card_with_everything_is_complete() -> None:
    assert missing(card()) == ()


@pytest.mark.parametrize(
    ("lacking", "name"),
    [
        ({"purpose": ""}, "purpose"),
        ({"inputs": ()}, "inputs"),
        ({"limits": ()}, "limits"),
        ({"safety": ()}, "safety"),
        ({"licence": ""}, "licence"),
        ({"contact": None}, "contact: set CARD_CONTACT"),
        ({"training": None}, "training: run `tips train` on tips of more than 3 days"),
        ({"metrics": ()}, "metrics: run `tips train` on tips of more than 3 days"),
        ({"calibration": ()}, "calibration: run `tips train` on tips of more than 3 days"),
        ({"slices": ()}, "slices: run `tips train` on tips of more than 3 days"),
    ],
)
def test_a_part_that_a_policy_lacks_is_named(lacking: dict[str, Any], name: str) -> None:
    assert missing(card(**lacking)) == (name,)


@pytest.mark.parametrize("kind", ["prompt", "model", "policy"])
def test_prompts_models_and_the_uniform_policy_need_no_figures(kind: str) -> None:
    version = "uniform" if kind == "policy" else "v1"
    figures: dict[str, Any] = {"training": None, "metrics": (), "calibration": (), "slices": ()}
    assert missing(card(kind=kind, version=version, **figures)) == ()


# JSON


@pytest.mark.parametrize("one", [card(), card(rollouts=(EVENT,)), card(training=None, contact=None, digest=None)])
def test_a_card_is_valid_by_its_json_schema_and_equal_after_a_round_trip(one: ModelCard) -> None:
    text = one.model_dump_json()
    jsonschema.validate(json.loads(text), SCHEMA)
    assert ModelCard.model_validate_json(text) == one


def test_the_json_has_from_and_to() -> None:
    document = json.loads(card(rollouts=(EVENT,)).model_dump_json())
    assert document["training"] | {"from": "", "to": ""} == {
        "from": "",
        "to": "",
        "decisions": 1_234,
        "learned_from": 987,
        "dataset_sha256": "0" * 64,
        "window_days": 7,
        "share": 1.0,
    }
    assert (document["rollouts"][0]["from"], document["rollouts"][0]["to"]) == ("shadow", "canary")


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"kind": "dataset"},
        {"version": "a b"},
        {"name": ""},
        {"metrics": [{"name": "gain", "value": "0.1", "n": 1, "source": ""}]},
        {"metrics": [{"name": "gain", "value": 1, "n": -1, "source": ""}]},
        {"calibration": [{"predicted": 1.5, "observed": 0.1, "low": 0, "high": 1, "n": 1}]},
        {"slices": [{"name": "mood:low", "n": 1, "status": "fine"}]},
        {"limits": ["x" * 2_001]},
    ],
)
def test_json_that_is_not_a_card_is_refused_by_the_model_and_by_the_schema(change: dict[str, Any]) -> None:
    document = json.loads(card().model_dump_json()) | change
    with pytest.raises(ValidationError):
        ModelCard.model_validate_json(json.dumps(document))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    text = card().model_dump_json().replace("0.03", number)
    with pytest.raises(ValidationError):
        ModelCard.model_validate_json(text)


def test_hidden_and_control_characters_are_removed_from_texts() -> None:
    assert card(purpose="a\n# b\u202e\x00\u2028c\t d").purpose == "a # b c d"


def test_inputs_have_the_types_and_ranges_of_the_features() -> None:
    inputs = {each.name: each for each in describe_inputs({name: signal.type for name, signal in SIGNALS.items()})}
    assert inputs.keys() == SIGNALS.keys()
    assert (inputs["sleep_hours"].type, inputs["sleep_hours"].range) == ("number", "0 to 24 (hour)")
    assert (inputs["energy"].type, inputs["energy"].range) == ("integer", "1 to 10")
    assert inputs["mood"].range == "great, good, okay, low, awful"
    assert inputs["recent_tips"].range == "at most 5, each at most 280 characters"
    assert inputs["local_time"].range.startswith("at most 5 characters, matching ^")


def test_a_card_is_found_by_its_version_or_by_a_name_that_is_unique() -> None:
    older, newer = card(version="a"), card(version="b")
    prompt = card(kind="prompt", name="v1", version="v1")
    cards = (older, newer, prompt)
    assert find_card(cards, "b") is newer
    assert find_card(cards, "v1") is prompt
    assert find_card(cards, "tips") is None
    assert find_card((newer,), "tips") is newer
    assert find_card(cards, "c") is None


def test_file_names_stay_in_their_folder_and_are_different() -> None:
    versions = ("openai/gpt", "openai%2Fgpt", "a/../..", "..")
    names = [card(kind="model", version=version).file_name for version in versions]
    assert len({*names}) == len(names)
    assert not any("/" in name or name.startswith(".") for name in names)
