"""The grammars that limit the text of the embedded model, and the words that it avoids."""

from ml.features.crisis import CRISIS_ANSWERS

# No grammar limits the length: a limit would cut a word in two and add a full stop. The limit of tokens ends a text
# that is too long, and the text is then refused as cut off.
#
# English is limited to plain ASCII, in which the small model makes the fewest mistakes: words in lower case that may
# begin with a capital, numbers, and times of day.
_ENGLISH_WORDS = """
words ::= ([,;]? " " item)+ [.]
item ::= word | number
word ::= [A-Z]? [a-z]+ ([-'] [a-z]+)* | "I"
number ::= [0-9]{1,4} ("-" [a-z]+)? | ([01]? [0-9] | "2" [0-3]) ":" [0-5] [0-9]
"""
ENGLISH_GRAMMAR = 'root ::= sentence (" " sentence)?\nsentence ::= [A-Z] [a-z]* ("\'" [a-z]+)? words' + _ENGLISH_WORDS
ENGLISH_REST_GRAMMAR = "root ::= words" + _ENGLISH_WORDS
"""The grammar of the words that complete an opening."""

# One or two sentences with all letters, but without quotation marks and markup.
ANY_GRAMMAR = r"""root ::= sentence (" " sentence)?
sentence ::= first other{4,} [.!?。！？।]
first ::= [^\x00-\x2F\x3A-\x40\x5B-\x60\x7B-\xBF\u2000-\u206F\u3000-\u3020.!?]
other ::= [^\x00-\x1F"*#_`<>{}|\\\x5B\x5D.!?\x7F-\x9F«»“”„。！？।]
"""

AVOIDED_WORDS: tuple[str, ...] = (
    *("deep", "deeply", "relax", "relaxing", "relaxed", "focus", "focusing", "energy", "positive", "positivity"),
    *("mindful", "mindfulness", "meditate", "meditation", "productive", "healthy", "overall", "improve", "reduce"),
    *("help", "helps", "ensure", "enjoy", "breathe", "mind", "calm"),
)
"""Words of general advice, which the model writes less often in English. No library contains one of them."""

AVOIDED_WORDS_BIAS = -6.0
"""Added to the logits of the tokens of these words."""


def grammar(locale: str | None, *, crisis: bool, opened: bool = False) -> str:
    """Return the GBNF grammar that a tip in `locale` (BCP 47; None: English) follows.

    `opened`: the model completes an English opening.
    """
    language = _language(locale)
    if crisis and language in CRISIS_ANSWERS:
        choices = (" | ".join(f'"{sentence}"' for sentence in sentences) for sentences in CRISIS_ANSWERS[language])
        return 'root ::= ({}) " " ({})'.format(*choices)
    if opened:
        return ENGLISH_REST_GRAMMAR
    return ENGLISH_GRAMMAR if language == "en" else ANY_GRAMMAR


def is_english(locale: str | None) -> bool:
    """Return whether a tip in `locale` is in English."""
    return _language(locale) == "en"


def _language(locale: str | None) -> str:
    return locale.lower().partition("-")[0] if locale else "en"
