"""The prompt registry: content, digests and the lock file."""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ml.features.context import PromptContext, assemble_context
from ml.features.definitions import SIGNALS, Signal
from ml.features.feature_types import Category
from ml.features.request_schemas import Signals
from ml.platform.errors import UnprocessableRequest
from ml.serving import prompts
from ml.serving.examples import LIBRARIES, load_library
from ml.serving.golden_situations import GOLDEN_SITUATIONS
from ml.serving.prompts import MAX_SHOWN_LENGTH, PROMPTS, Prompt, resolve_prompt
from tests.tip_rubric import word_overlap


def test_released_versions_have_not_changed() -> None:
    assert prompts.changed_versions() == [], "a released version cannot change: add a new version instead"


def test_all_versions_are_released() -> None:
    assert prompts.locked_digests().keys() == PROMPTS.keys(), "run `tips prompts lock` to release the new versions"


def with_library(**content: Any) -> Prompt:
    return Prompt("any", "Be brief.", library="plain", shows_example=True, **content)


def fresh_digest(version: str) -> str:
    """Return the digest of a version as a new process computes it."""
    load_library.cache_clear()
    return dataclasses.replace(PROMPTS[version]).digest


def test_the_digest_depends_on_all_content_but_not_on_the_description() -> None:
    prompt = with_library()
    changes: list[dict[str, Any]] = [
        {"system": "Be brief!"},
        {"library": "mentor"},
        {"library": None},
        {"shows_example": False},
        {"parameters": prompts.Parameters(temperature=0.1)},
        {"parameters": prompts.Parameters(max_tokens=20)},
    ]
    digests = {dataclasses.replace(prompt, **change).digest for change in changes}
    assert len({prompt.digest, *digests}) == 7
    assert dataclasses.replace(prompt, description="b").digest == prompt.digest
    assert re.fullmatch(r"[0-9a-f]{64}", prompt.digest)


def with_sentence(name: str, sentence: str) -> Mapping[str, Signal]:
    return {**SIGNALS, name: dataclasses.replace(SIGNALS[name], sentence=sentence)}


def with_options(name: str, **wording: str) -> Mapping[str, Signal]:
    signal = SIGNALS[name]
    assert isinstance(signal.type, Category)
    return {**SIGNALS, name: Signal(Category({**signal.type.options, **wording}), signal.sentence)}


def without_crisis(signals: Mapping[str, Any]) -> PromptContext:
    return dataclasses.replace(assemble_context(signals), crisis=False)


# Each change of code that could change what a model receives: the place, and the new value.
CHANGES: dict[str, tuple[str, Any]] = {
    "the request without signals": ("ml.serving.prompts._request", lambda context: context.text or "Suggest a thing."),
    **{
        f"the sentence of {name}": ("ml.features.context.SIGNALS", with_sentence(name, signal.sentence + "!"))
        for name, signal in SIGNALS.items()
    },
    **{
        f"the wording of {name} {option}": (
            "ml.features.context.SIGNALS",
            with_options(name, **{option: wording + "!"}),
        )
        for name, signal in SIGNALS.items()
        if isinstance(signal.type, Category)
        for option, wording in signal.type.options.items()
    },
    "the wording of ratings": ("ml.features.feature_types.Rating.words", lambda _, value: f"{value} of 10"),
    "the wording of quantities": ("ml.features.feature_types._quantity", lambda number, unit: f"{number} {unit}"),
    "the wording of times": ("ml.features.feature_types.TimeOfDay.words", lambda _, value: value.lstrip("0")),
    "the names of languages": ("ml.features.feature_types.Language.words", lambda _, value: value),
    "the quoting of free text": ("ml.features.text_types.quote_free_text", lambda text, _: f"'{text}'"),
    "the detection of a crisis": ("ml.serving.prompts.assemble_context", without_crisis),
    "the grammar": ("ml.serving.grammar.ENGLISH_REST_GRAMMAR", "root ::= [a-z]+"),
    "the grammar of other languages": ("ml.serving.grammar.ANY_GRAMMAR", "root ::= [a-z]+"),
    "the words to avoid": ("ml.serving.prompts.AVOIDED_WORDS", ("deep",)),
    "the bias against them": ("ml.serving.prompts.AVOIDED_WORDS_BIAS", -1.0),
    "the topics of goals": ("ml.serving.prompts.TOPIC_WORDS", {"sleep": "sleep"}),
    **{
        f"the choice of examples: {name}": (f"ml.serving.examples.{name}", value)
        for name, value in {
            "_GOAL": 0.5,
            "_ACTIVITY": 9.0,
            "_TIME": 9.0,
            "_UNKNOWN_TIME": 9.0,
            "_UNUSED": 0.0,
            "_TOLD": 0.0,
            "_NEUTRAL_GOAL": 2.0,
            "_FURTHEST_HOURS": 1,
            "_NIGHT_ENDS": 9,
            "_BEDTIME_BEGINS": 10,
            "_EVENING_BEGINS": 22,
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_that_reaches_the_model_changes_the_digest(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fresh_digest("v2-mentor")
    monkeypatch.setattr(*CHANGES[change])
    assert fresh_digest("v2-mentor") != before


def test_a_changed_grammar_without_openings_changes_the_digest_of_a_version_without_a_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = Prompt("any", "Be brief.")
    assert prompt.digest
    monkeypatch.setattr("ml.serving.grammar.ENGLISH_GRAMMAR", "root ::= [a-z]+")
    assert dataclasses.replace(prompt).digest != prompt.digest


def test_a_changed_library_changes_the_digest_even_where_no_example_is_chosen_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {version: fresh_digest(version) for version in PROMPTS}
    for file in LIBRARIES.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("ml.serving.examples.LIBRARIES", tmp_path)
    assert {version: fresh_digest(version) for version in PROMPTS} == before
    plain = tmp_path / "plain.json"
    plain.write_text(plain.read_text().replace("teeth now.", "teeth soon."))
    changed = [version for version, digest in before.items() if fresh_digest(version) != digest]
    assert changed == [version for version, prompt in PROMPTS.items() if prompt.library == "plain"]
    load_library.cache_clear()


def test_the_digest_is_stable() -> None:
    prompt = Prompt("any", "Grüße.", prompts.Parameters(0.5, 0.9, 100))
    assert prompt.digest == "e0cc3911256e6f37dd480f529b9968b362bf47a27dd525d1c8aa73342077712d"


ADDED_SINCE: set[str] = set()
"""Signals that are younger than the golden situations; `WORDING` in tests/features/test_context.py covers them."""


def test_the_golden_situations_contain_every_signal_and_every_option() -> None:
    assert {name for signals in GOLDEN_SITUATIONS for name in signals} == SIGNALS.keys() - ADDED_SINCE
    for name, signal in SIGNALS.items():
        if isinstance(signal.type, Category) and name not in ADDED_SINCE:
            assert {signals.get(name) for signals in GOLDEN_SITUATIONS} >= signal.type.options.keys()
    for signals in GOLDEN_SITUATIONS:
        Signals.model_validate(dict(signals))


def test_locking_adds_new_versions_and_changes_no_released_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "LOCK", tmp_path / "prompts.lock")
    prompts.LOCK.write_text(json.dumps({"v1": PROMPTS["v1"].digest, "v0": "gone", "v2-mentor": "another"}))
    assert prompts.changed_versions() == ["v0", "v2-mentor"]
    assert prompts.lock_versions() == [version for version in PROMPTS if version not in {"v1", "v2-mentor"}]
    assert prompts.locked_digests()["v2-mentor"] == "another"
    assert prompts.lock_versions() == []


def test_the_requested_version_is_used_then_the_default() -> None:
    assert resolve_prompt("v2-mentor", "v1")[0] == "v2-mentor"
    assert resolve_prompt(None, "v3-few-shot") == ("v3-few-shot", PROMPTS["v3-few-shot"])
    for prompt_version, default in (("v9", "v1"), ("", "v1"), (None, "v9")):
        with pytest.raises(UnprocessableRequest, match=", ".join(PROMPTS)):
            resolve_prompt(prompt_version, default)


@pytest.mark.parametrize(
    ("version", "shown"),
    [("v9", "'v9'"), ("v\n9\u202e", r"'v\n9\u202e'"), ("v" * 10_000, f"'{'v' * MAX_SHOWN_LENGTH}'")],
)
def test_an_unknown_version_is_shown_in_part_and_without_control_characters(version: str, shown: str) -> None:
    with pytest.raises(UnprocessableRequest) as raised:
        resolve_prompt(version, "v1")
    assert raised.value.detail.startswith(f"The prompt version {shown} is not known; it should be one of ")
    assert raised.value.detail.isprintable()


def test_the_registry_cannot_be_changed_at_run_time() -> None:
    with pytest.raises(TypeError):
        PROMPTS["v9"] = PROMPTS["v1"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROMPTS["v1"].system = "x"  # type: ignore[misc]


def roles(version: str, **signals: Any) -> list[str]:
    return [message["role"] for message in PROMPTS[version].render(assemble_context(signals)).messages]


def test_the_baseline_shows_no_example_and_the_other_versions_show_the_nearest_one() -> None:
    assert roles("v1", activity="eating") == ["system", "user"]
    for version in ("v2-mentor", "v3-few-shot"):
        assert roles(version, activity="eating") == ["system", "user", "assistant", "user"]
        rendered = PROMPTS[version].render(assemble_context({"activity": "eating"}))
        assert "having a meal" in rendered.messages[1]["content"]
        assert rendered.messages[2]["content"].startswith(rendered.opening)


@pytest.mark.parametrize("version", PROMPTS)
def test_in_english_the_embedded_model_completes_the_opening_of_the_nearest_example(version: str) -> None:
    for locale in (None, "en-GB"):
        rendered = PROMPTS[version].render(assemble_context({"activity": "walking", "locale": locale}))
        examples = load_library(PROMPTS[version].library or "").examples
        (example,) = [example for example in examples if example.opening == rendered.opening]
        assert example.signals["activity"] == "walking"
    assert PROMPTS[version].render(assemble_context({"activity": "walking", "locale": "fr"})).opening == ""


@pytest.mark.parametrize("version", PROMPTS)
def test_in_a_crisis_there_is_neither_an_example_nor_an_opening(version: str) -> None:
    assert roles(version, goal="I want to die", activity="eating") == ["system", "user"]
    assert PROMPTS[version].render(assemble_context({"goal": "I want to die"})).opening == ""


def test_versions_with_different_libraries_open_the_tips_for_the_same_situation_differently() -> None:
    for activity in ("working", "walking", "in_bed", "eating", None):
        context = assemble_context({"activity": activity})
        openings = {prompt.library: prompt.render(context).opening for prompt in PROMPTS.values() if prompt.library}
        assert len(openings) > 1
        for first, second in itertools.combinations(openings.values(), 2):
            assert word_overlap(first, second) < 0.5


def test_a_version_without_a_library_is_one_entry_with_a_system_text() -> None:
    rendered = Prompt("any", "Be brief.").render(assemble_context({"energy": 3}))
    assert rendered.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "My energy is 3 out of 10."},
    ]
    assert rendered.opening == ""


@pytest.mark.parametrize("version", PROMPTS)
def test_the_request_names_the_language_of_the_locale(version: str) -> None:
    request = PROMPTS[version].render(assemble_context({"locale": "pt-BR"})).messages[-1]["content"]
    assert "Portuguese (Brazil)" in request
