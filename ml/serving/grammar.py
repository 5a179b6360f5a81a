"""The grammars that limit the text of the embedded model."""

from ml.features.crisis import CRISIS_ANSWERS

# One or two sentences of about 15 to 130 characters. English is limited to plain ASCII, in which the small model makes
# the fewest mistakes. Other languages may use all letters, but no quotation marks and no markup.
_GRAMMAR = r"""root ::= sentence (" " sentence)?
sentence ::= %s (%s){13,128} %s
"""
ENGLISH_GRAMMAR = _GRAMMAR % ("[A-Z]", """[A-Za-z0-9 ,;'] | ":" [0-9] [0-9] | "-minute" | "-second" """, "[.!?]")
ANY_GRAMMAR = _GRAMMAR % (
    r"[^\x00-\x2F\x3A-\x40\x5B-\x60\x7B-\xBF\u2000-\u206F\u3000-\u3020.!?]",
    r"""[^\x00-\x1F"*#_`<>{}|\\\x5B\x5D.!?\x7F-\x9F«»“”„。！？।]""",
    "[.!?。！？।]",
)


def grammar(locale: str | None, *, crisis: bool) -> str:
    """Return the GBNF grammar that a tip in `locale` (BCP 47; None: English) follows."""
    language = locale.lower().partition("-")[0] if locale else "en"
    if crisis and language in CRISIS_ANSWERS:
        choices = (" | ".join(f'"{sentence}"' for sentence in sentences) for sentences in CRISIS_ANSWERS[language])
        return 'root ::= ({}) " " ({})'.format(*choices)
    return ENGLISH_GRAMMAR if language == "en" else ANY_GRAMMAR
