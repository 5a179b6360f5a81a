"""`tips prompts`."""

from ml.serving.prompts import PROMPTS
from tests.process import TIPS, run


def test_every_version_is_shown_with_its_digest() -> None:
    ended = run(TIPS, "prompts", COLUMNS="120", DEFAULT_PROMPT_VERSION="v2-mentor")
    assert ended.returncode == 0
    for version, prompt in PROMPTS.items():
        assert version in ended.stdout
        assert prompt.digest[:12] in ended.stdout
    assert "v2-mentor (default)" in ended.stdout


def test_releasing_again_changes_nothing() -> None:
    ended = run(TIPS, "prompts", "lock")
    assert (ended.returncode, ended.stdout) == (0, "released: nothing new\n")
