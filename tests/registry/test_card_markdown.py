"""Model cards as Markdown."""

from typing import Any

from huggingface_hub import ModelCard as HubCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ml.registry.card_markdown import to_markdown
from ml.registry.cards import Metric, Slice
from tests.registry.example_cards import EVENT, card


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
