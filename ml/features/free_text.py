"""Free text from users: what is removed from it at the edge, its normal form, and its quotation in prompts."""

import re
import unicodedata

# Default-ignorable characters (Unicode, DerivedCoreProperties): bidirectional controls, zero-width characters, fillers
# and tags. They can hide text from people, or show it in another order than it is read by a model. Two kinds that
# scripts need stay: variation selectors 1 to 16 (emoji), and joiners after a character of a script from Arabic to
# Mongolian or after an emoji.
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
    "|(?<![\u0600-\u109f\u1780-\u18af\u2190-\u2bff\ufe0f\U0001f000-\U0001faff])[\u200c\u200d]"
)

_DOUBLE_QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2033\u2036\u275d\u275e\u301d-\u301f\uff02]')

# Control, surrogate, private-use and unassigned characters, and separators of lines and paragraphs.
_INVISIBLE = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})

# A token of a chat template (`<|im_end|>`, `[INST]`) is one word without spaces.
_TOKEN_START = re.compile(r"([<\[])(?=\S)")

_APOSTROPHES = re.compile(r"['\u2018\u2019\u02bc]")
_NO_WORDS = re.compile(r"\W+")


def _visible(character: str) -> str:
    return " " if unicodedata.category(character) in _INVISIBLE else character


def remove_hidden_characters(text: str) -> str:
    """Return a text without bidirectional controls, zero-width characters and other characters that hide text.

    Joiners that a script or an emoji needs stay.
    """
    return text if text.isascii() else _HIDDEN.sub("", text)


def normalise_words(text: str) -> str:
    """Return the words of a text in lower case without apostrophes, separated by single spaces."""
    text = unicodedata.normalize("NFKC", remove_hidden_characters(text)).lower()
    return _NO_WORDS.sub(" ", _APOSTROPHES.sub("", text)).strip()


def quote_free_text(text: str, max_length: int) -> str:
    """Return free text as one line of at most `max_length` characters between double quotes, the only ones in it.

    Hidden characters are removed, control and line-separating characters become spaces and every form of double quote
    becomes an apostrophe, so that no text can close its own quotation; a space separates the parts of a token that a
    chat template could contain. Returns "" when nothing visible is left.
    """
    text = remove_hidden_characters(text)
    visible = text if text.isprintable() else "".join(map(_visible, text))
    line = _TOKEN_START.sub(r"\1 ", _DOUBLE_QUOTES.sub("'", " ".join(visible.split())))[:max_length].strip()
    return f'"{line}"' if line else ""
