"""Model cards: what is missing on them, and their JSON and Markdown."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
from huggingface_hub import ModelCard as HubCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import ValidationError

from ml.features.definitions import SIGNALS
from ml.registry.cards import (
    CalibrationBin,
    CardInput,
    Metric,
    ModelCard,
    RolloutEntry,
    Slice,
    Training,
    describe_inputs,
    find_card,
    missing,
    to_markdown,
)

AT = datetime(2026, 1, 31, 21, 40, tzinfo=UTC)


def card(**fields: Any) -> ModelCard:
    """Return a complete card of a learned policy, with these fields replaced."""
    complete: dict[str, Any] = {
        "name": "tips",
        "kind": "policy",
        "version": "0123456789ab",
        "digest": "0123456789ab",
        "purpose": "Ranks tips.",
        "inputs": (CardInput(name="mood", type="string", range="good, low"),),
        "training": Training(
            since=AT - timedelta(days=9),
            until=AT,
            decisions=1_234,
            learned_from=987,
            dataset_sha256="0" * 64,
            window_days=7,
        ),
        "metrics": (Metric(name="gain", value=0.03, low=-0.01, high=0.07, n=900, source="held-out days"),),
        "calibration": (CalibrationBin(predicted=0.2, observed=0.25, low=0.1, high=0.4, n=900),),
        "slices": (Slice(name="mood:low", n=90, value=0.01, low=-0.1, high=0.2, status="unknown"),),
        "limits": ("Linear.",),
        "safety": ("Every tip is checked.",),
        "licence": "apache-2.0",
        "contact": "ml@example.org",
    }
    return ModelCard(**complete | fields)


EVENT = RolloutEntry(
    at=AT,
    actor="ada",
    action="promote",
    from_stage="shadow",
    to_stage="canary",
    share=0.1,
    reason="All gates pass.",
    event=7,
)
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


# Markdown


def text_of(markdown: str) -> list[str]:
    """Return the texts of the body as a reader sees them; only text, emphasis and code may be inside of blocks."""
    inner = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        assert token.type not in {"html_block", "hr", "code_block", "fence", "blockquote_open"}, token
        for child in token.children or ():
            assert child.type in {"text", "text_special", "strong_open", "strong_close"}, child
        if token.type == "inline":
            inner.append("".join(child.content for child in token.children or ()))
    return inner


def test_the_markdown_shows_everything_that_is_on_the_card() -> None:
    one = card(rollouts=(EVENT,))
    markdown = to_markdown(one)
    assert [line for line in markdown.splitlines() if line.startswith("#")] == [
        "# tips 0123456789ab",
        "## Inputs",
        "## Training",
        "## Offline metrics",
        "## Calibration",
        "## Fairness: gain over the log by slice",
        "## Limits",
        "## Safety",
        "## Rollout history",
    ]
    texts = text_of(HubCard(markdown).text)
    for text in (
        *("Ranks tips.", "mood", "good, low", "1,234", "0" * 64, "gain", "0.03", "-0.01", "0.07", "900", "0.25"),
        *("mood:low", "unknown", "Linear.", "Every tip is checked.", "apache-2.0", "ml@example.org"),
        *("7", "ada", "promote", "shadow", "canary", "10%", "All gates pass.", "2026-01-31 21:40"),
        *("2026-01-22 21:40 UTC", "2026-01-31 21:40 UTC", "987 decisions of the last 7 days"),
    ):
        assert text in texts
    assert "incomplete" not in markdown
    assert "**This card is incomplete.** Missing: contact: set CARD\\_CONTACT." in to_markdown(card(contact=None))


def test_the_hub_reads_the_front_matter() -> None:
    data: Any = HubCard(to_markdown(card())).data
    assert (data.license, data.tags) == ("apache-2.0", ["tip-service", "policy"])
    assert data.model_name == "tips 0123456789ab"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("gain", 0.03)
    assert result.metric_args == {"low": -0.01, "high": 0.07, "n": 900}
    assert (result.dataset_type, result.dataset_name) == ("decision-log", "held-out days")
    without: Any = HubCard(to_markdown(card(metrics=(), licence="Ask us."))).data
    assert without.to_dict() == {"license": "other", "tags": ["tip-service", "policy"]}


ONE_LINE = st.text(max_size=30).filter(lambda text: card(purpose=text).purpose)
HOSTILE = [
    "---",
    "# a",
    "1. a",
    "2) a",
    "- a",
    "+ a",
    "=",
    "a | b",
    "\\",
    "\\|",
    "a\\",
    "`a`",
    "``",
    "<script>alert(1)</script>",
    "<!-- a",
    "&lt;",
    "&#35;",
    "[a](javascript:b)",
    "![a](b)",
    "[a]: b",
    "[^1]",
    "**a**",
    "__a__",
    "~~~",
    "<http://a.example>",
    "> a",
    "a:\n---\nb: c",
    'a"\nb: "c',
    "\x85\u2028\ud7ff\U0001f600",
]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.sampled_from(HOSTILE), ONE_LINE), st.floats(allow_nan=False, allow_infinity=False))
def test_no_text_of_a_card_becomes_markup_or_a_field_of_the_front_matter(text: str, number: float) -> None:
    metric = Metric(name="gain", value=number, n=1, source=text)
    one = card(
        name=text,
        purpose=text,
        limits=(text,),
        licence=text,
        contact=text,
        slices=(Slice(name=text, n=1, status="unknown"),),
        metrics=(metric,),
    )
    shown = one.purpose
    markdown = to_markdown(one)
    hub_card = HubCard(markdown)
    data: Any = hub_card.data
    (result,) = data.eval_results
    assert (data.model_name, result.dataset_name, result.metric_value) == (
        f"{shown} {one.version}",
        shown,
        number,
    )
    assert data.to_dict().keys() == {"license", "tags", "model-index"}
    texts = text_of(hub_card.text)
    # The title, the purpose, the licence, the contact, the source, the slice and the limit.
    assert texts.count(shown) >= 6
    assert f"{shown} {one.version}" in texts
