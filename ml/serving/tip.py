"""The checks of a tip: short plain text that can be shown to a person unchanged."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType

import sentencex

from ml.platform.errors import UnusableTip

MAX_TIP_LENGTH = 280
"""In characters."""

MAX_SENTENCES = 2

_QUOTES = "\"'`\u00ab\u00bb\u2018\u2019\u201c\u201d\u201e\u300c\u300d"
_PREAMBLE = re.compile(
    r"(sure|certainly|of course|absolutely|okay|great)\b[,!:.]"
    r"|here(\s+is|\s+are|['\u2019]s)\b"
    r"|(\w+\s+){0,3}tip\s*(\d+\s*)?:"
    r"|as an ai\b"
    r"|(i['\u2019]m|i am) (sorry|unable|an? (ai|assistant))\b"
    r"|i (cannot|can['\u2019]t)\b",
    re.IGNORECASE,
)
_TELEPHONE = re.compile(r"(\d[\s()./-]?){7,}")
_REPETITION = re.compile(r"(\w{2,})(\W+\1){2,}|(\w{4,}\W)\3{2,}|\s{3,}|(\w{2,}\W+\w{2,}\W+)\4{2,}", re.IGNORECASE)
_MARKUP = re.compile(
    r"[*_]{2}|`|~~|<[^\s<>][^<>]*>|\[[^\]]*\]\(|https?://"
    r"|^\s*([#>]|[-+*\u2022]\s|\d+[.)]\s)"
    r"|(?<!\w)[*_]\w[^*_]*[*_](?!\w)"
)

# Each rule: the reason that follows "it …" in the error message, and a test that is true for a text that breaks it.
_RULES: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "is empty": lambda tip: not tip,
        f"is longer than {MAX_TIP_LENGTH} characters": lambda tip: len(tip) > MAX_TIP_LENGTH,
        "has more than one line": lambda tip: any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in tip),
        "is in quotation marks": lambda tip: tip[0] in _QUOTES and tip[-1] in _QUOTES,
        "contains markup": _MARKUP.search,
        "contains a telephone number": _TELEPHONE.search,  # models invent them
        "repeats itself": _REPETITION.search,
        "begins with words that are not part of the tip": _PREAMBLE.match,
    }
)


def validate_tip(text: str, *, locale: str | None = None, finish_reason: str = "stop") -> str:
    """Return the tip in a model's text. Raises UnusableTip, naming the first rule that the text breaks.

    A tip is one complete line of at most 280 characters and two sentences (in the language of `locale`, a BCP 47 tag),
    without preamble, enclosing quotes, markup, repetition or telephone number.
    """
    tip = text.strip()
    reason = next((reason for reason, is_broken in _RULES.items() if is_broken(tip)), None)
    if finish_reason == "length":
        reason = "was cut off"
    elif finish_reason != "stop":
        reason = "was not finished"
    elif reason is None and len(_sentences(tip, locale)) > MAX_SENTENCES:
        reason = f"has more than {MAX_SENTENCES} sentences"
    if reason:
        raise UnusableTip(f"The model's text cannot be shown: it {reason}.")
    return tip


def _sentences(tip: str, locale: str | None) -> list[str]:
    language = locale.partition("-")[0].lower() if locale else "en"
    return [sentence for sentence in sentencex.segment(language, tip) if sentence.strip()]
