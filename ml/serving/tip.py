"""What a tip is: short plain text that can be shown to a person as it stands."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType

import sentencex

from ml.platform.errors import UnusableTip

MAX_TIP_LENGTH = 280
"""Characters."""

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
_STUCK = re.compile(r"(\w{2,})(\W+\1){2,}|(\w{4,}\W)\3{2,}|\s{3,}|(\w{2,}\W+\w{2,}\W+)\4{2,}", re.IGNORECASE)
_MARKUP = re.compile(
    r"[*_]{2}|`|~~|<[^\s<>][^<>]*>|\[[^\]]*\]\(|https?://"
    r"|^\s*([#>]|[-+*\u2022]\s|\d+[.)]\s)"
    r"|(?<!\w)[*_]\w[^*_]*[*_](?!\w)"
)


# What a tip must not be, in the words that follow "it …", and how to see it.
_RULES: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "is empty": lambda tip: not tip,
        f"is longer than {MAX_TIP_LENGTH} characters": lambda tip: len(tip) > MAX_TIP_LENGTH,
        "has more than one line": lambda tip: any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in tip),
        "is in quotation marks": lambda tip: tip[0] in _QUOTES and tip[-1] in _QUOTES,
        "has markup in it": _MARKUP.search,
        "has a telephone number in it": _TELEPHONE.search,  # models make them up
        "repeats itself": _STUCK.search,
        "begins with something that is not the tip": _PREAMBLE.match,
    }
)


def validate_tip(text: str, *, locale: str | None = None, finish_reason: str = "stop") -> str:
    """Return the tip in what a model wrote, or raise UnusableTip, saying which rule it breaks.

    One line of at most 280 characters and two sentences (in the language of `locale`, a BCP 47 tag), complete, and
    without preamble, enclosing quotes, markup or telephone number.
    """
    tip = text.strip()
    broken = next((why for why, breaks in _RULES.items() if breaks(tip)), None)
    if finish_reason == "length":
        broken = "was cut off"
    elif broken is None and len(_sentences(tip, locale)) > MAX_SENTENCES:
        broken = f"has more than {MAX_SENTENCES} sentences"
    if broken:
        raise UnusableTip(f"What the model wrote cannot be shown: it {broken}.")
    return tip


def _sentences(tip: str, locale: str | None) -> list[str]:
    language = locale.partition("-")[0].lower() if locale else "en"
    return [sentence for sentence in sentencex.segment(language, tip) if sentence.strip()]
