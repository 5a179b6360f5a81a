"""`tips prompts`."""

import pytest

from ml.features.context import assemble_context
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


def test_show_prints_the_messages_and_the_opening_for_the_given_signals() -> None:
    signals = ("--signal", "goal=sleep better", "--signal", "activity=in_bed", "--signal", "local_time=23:00")
    ended = run(TIPS, "prompts", "show", "v2-mentor", *signals)
    assert ended.returncode == 0, ended.stderr
    context = assemble_context({"goal": "sleep better", "activity": "in_bed", "local_time": "23:00"})
    rendered = PROMPTS["v2-mentor"].render(context)
    for message in rendered.messages:
        assert f"\n{message['role']}:\n{message['content']}\n" in ended.stdout
    assert ended.stdout.endswith(f"{rendered.opening}\n")
    assert ended.stdout.startswith("temperature: 0.4, top_p: 0.9, max_tokens: 160\nlibrary: mentor\n")


def test_show_in_another_language_has_no_opening() -> None:
    ended = run(TIPS, "prompts", "show", "v1", "--signal", "locale=de-DE")
    assert "Reply in German (Germany)." in ended.stdout
    assert "assistant" not in ended.stdout


def test_diff_prints_the_lines_that_differ() -> None:
    ended = run(TIPS, "prompts", "diff", "v1", "v2-mentor", "--signal", "energy=3")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("--- v1\n+++ v2-mentor\n")
    assert "\n-library: plain\n+library: mentor\n" in ended.stdout
    assert "My energy is 3" in ended.stdout
    assert run(TIPS, "prompts", "diff", "v1", "v1").stdout == "no difference\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("show", "v9"), "v1, v2-mentor, v3-few-shot"),
        (("diff", "v1", "v9"), "v1, v2-mentor, v3-few-shot"),
        (("show", "v1", "--signal", "energy=99"), "energy"),
        (("show", "v1", "--signal", "energy"), "NAME=VALUE"),
    ],
)
def test_an_unknown_version_or_a_wrong_signal_is_a_sentence(arguments: tuple[str, ...], error: str) -> None:
    ended = run(TIPS, "prompts", *arguments, COLUMNS="200")
    assert ended.returncode != 0
    assert error in ended.stderr
    assert "Traceback" not in ended.stderr
