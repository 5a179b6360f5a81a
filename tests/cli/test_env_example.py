"""`.env.example`: one line with a comment for each setting, and the prompt policies as they are registered."""

import re
from pathlib import Path

import pytest

from ml.experiments.policies import POLICIES, selectable_policies
from ml.pipelines.settings import PipelineSettings
from ml.recommender.settings import RecommenderSettings
from ml.serving.settings import ServingSettings

EXAMPLE = (Path(__file__).parents[2] / ".env.example").read_text()
CLASSES = (ServingSettings, RecommenderSettings, PipelineSettings)
SETTINGS = {name.upper() for settings in CLASSES for name in settings.model_fields}


def entries() -> dict[str, tuple[str, str]]:
    """Return the comment and the value of each setting by its name."""
    found = re.findall(r"((?:^#.*\n)+)^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE)
    return {name: (comment, value) for comment, name, value in found}


def test_every_setting_has_exactly_one_line() -> None:
    assert sorted(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == sorted(SETTINGS)


def test_every_setting_has_a_comment() -> None:
    assert entries().keys() == SETTINGS


def test_the_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (_, value) in entries().items():
        monkeypatch.setenv(name, value)
    for settings in CLASSES:
        assert settings.from_environment() == settings()


def test_the_comment_of_the_prompt_policy_describes_every_selectable_policy() -> None:
    comment, value = entries()["TIP_PROMPT_POLICY"]
    described = re.findall(r"^# - ([^:]+): (.+)$", comment, re.MULTILINE)
    assert described == [(name, POLICIES[name].summary) for name in selectable_policies()]
    assert value in selectable_policies()
