"""The quoting of free text in prompts, which marks it as data."""

import re
import unicodedata

_DOUBLE_QUOTES = re.compile('["\u00ab\u00bb\u201c-\u201f\u2033\u2036\u275d\u275e\u301d-\u301f\uff02]')

# Control, format (bidirectional overrides, zero-width), surrogate, private-use and unassigned characters, and
# separators of lines and paragraphs.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def quote_free_text(text: str, max_length: int) -> str:
    """Return free text as one line of at most `max_length` characters between double quotes, the only ones in it.

    Control, format and line-separating characters become spaces and every form of double quote becomes an apostrophe,
    so that no text can close its own quotation. Returns "" when nothing visible is left.
    """
    visible = "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in text)
    line = _DOUBLE_QUOTES.sub("'", " ".join(visible.split()))[:max_length].strip()
    return f'"{line}"' if line else ""
