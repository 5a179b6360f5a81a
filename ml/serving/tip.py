"""What a tip is: short plain text that can be shown to a person as it stands."""

import re
import unicodedata

import sentencex

from ml.errors import UnusableTip

LONGEST = 280
"""Characters."""

MOST_SENTENCES = 2

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
_MARKUP = re.compile(
    r"[*_]{2}|`|~~|<[^\s<>][^<>]*>|\[[^\]]*\]\(|https?://"
    r"|^\s*([#>]|[-+*\u2022]\s|\d+[.)]\s)"
    r"|(?<!\w)[*_]\w[^*_]*[*_](?!\w)"
)


def checked(text: str, *, locale: str | None = None, finish_reason: str = "stop") -> str:
    """Return the tip in what a model wrote, or raise UnusableTip, saying which rule it breaks.

    One line of at most 280 characters and two sentences (in the language of `locale`, a BCP 47 tag), complete, and
    without preamble, enclosing quotes, markup or telephone number.
    """
    tip = text.strip()
    if not tip:
        raise _unusable("is empty")
    if len(tip) > LONGEST:
        raise _unusable(f"is longer than {LONGEST} characters")
    if finish_reason == "length":
        raise _unusable("was cut off")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in tip):
        raise _unusable("has more than one line")
    if tip[0] in _QUOTES and tip[-1] in _QUOTES:
        raise _unusable("is in quotation marks")
    if _MARKUP.search(tip):
        raise _unusable("has markup in it")
    if _TELEPHONE.search(tip):  # a model makes them up
        raise _unusable("has a telephone number in it")
    if _PREAMBLE.match(tip):
        raise _unusable("begins with something that is not the tip")
    if len([part for part in sentencex.segment(_language(locale), tip) if part.strip()]) > MOST_SENTENCES:
        raise _unusable(f"has more than {MOST_SENTENCES} sentences")
    return tip


def _language(locale: str | None) -> str:
    return locale.partition("-")[0].lower() if locale else "en"


def _unusable(why: str) -> UnusableTip:
    return UnusableTip(f"What the model wrote cannot be shown: it {why}.")
