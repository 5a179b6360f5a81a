"""The prompt registry: content, digests and the lock file."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from ml.features.context import assemble_context
from ml.features.request_schemas import Signals
from ml.platform.errors import UnprocessableRequest
from ml.serving import prompts
from ml.serving.prompts import BASELINE_VERSION, MAX_SHOWN_LENGTH, PROMPTS, Example, Prompt, resolve_prompt
from ml.serving.tip import validate_tip


def test_released_versions_have_not_changed() -> None:
    assert prompts.changed_versions() == [], "a released version cannot change: add a new version instead"


def test_all_versions_are_released() -> None:
    assert prompts.locked_digests().keys() == PROMPTS.keys(), "run `tips prompts lock` to release the new versions"


def test_the_digest_depends_on_text_examples_and_parameters_but_not_on_the_description() -> None:
    prompt = Prompt("a", "Be brief.", (Example({"energy": 3}, "Rest now."),))
    changes = [
        {"system": "Be brief!"},
        {"examples": ()},
        {"examples": (Example({"energy": 4}, "Rest now."),)},
        {"parameters": prompts.Parameters(temperature=0.1)},
    ]
    digests = {dataclasses.replace(prompt, **change).digest for change in changes}  # type: ignore[arg-type]
    assert len({prompt.digest, *digests}) == 5
    assert dataclasses.replace(prompt, description="b").digest == prompt.digest
    assert re.fullmatch(r"[0-9a-f]{64}", prompt.digest)


def test_the_digest_is_stable() -> None:
    prompt = Prompt("any", "Grüße.", (Example({"goal": "x", "energy": 3}, "Rest."),), prompts.Parameters(0.5, 0.9, 100))
    assert prompt.digest == "b4ef07f40ed221b085e5f88fab0f766dfd1fb79a5fa12a93a0e96d24d0af9e57"


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


def test_few_shot_is_the_baseline_with_examples_as_chat_turns() -> None:
    few_shot = PROMPTS["v3-few-shot"]
    assert few_shot.system is PROMPTS[BASELINE_VERSION].system
    assert 4 <= len(few_shot.examples) <= 6
    roles = [message["role"] for message in few_shot.render(assemble_context({}))]
    assert roles == ["system", *["user", "assistant"] * len(few_shot.examples), "user"]


@pytest.mark.parametrize(
    "example",
    [example for prompt in PROMPTS.values() for example in prompt.examples],
    ids=lambda example: example.tip[:20],
)
def test_every_example_has_valid_signals_and_a_usable_tip(example: Example) -> None:
    Signals.model_validate(dict(example.signals))
    assert validate_tip(example.tip) == example.tip


@pytest.mark.parametrize("version", PROMPTS)
def test_the_request_names_the_language_of_the_locale(version: str) -> None:
    request = PROMPTS[version].render(assemble_context({"locale": "pt-BR"}))[-1]["content"]
    assert "Portuguese (Brazil)" in request
