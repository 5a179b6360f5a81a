"""The grammars that limit the text of the embedded model, and its fixed sentences for a crisis."""

from types import MappingProxyType

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

# In a crisis a model this small only chooses between fixed sentences, where its language has some. For each language:
# the choices for the first sentence and for the second.
_CRISIS_SENTENCES = MappingProxyType(
    {
        "en": (
            ("You do not have to carry this alone.", "You matter, and there are people who want to help you."),
            (
                "Please call a crisis line or talk to someone you trust right now.",
                "Please call your local emergency number, or be with someone you trust, right now.",
            ),
        ),
        "de": (
            ("Du musst da nicht allein durch.", "Du bist wichtig, und es gibt Menschen, die dir helfen wollen."),
            (
                "Bitte ruf jetzt ein Krisentelefon an oder sprich mit jemandem, dem du vertraust.",
                "Bitte wähle jetzt den Notruf oder geh zu jemandem, dem du vertraust.",
            ),
        ),
        "es": (
            ("No tienes que pasar por esto en soledad.", "Importas, y hay personas que quieren ayudarte."),
            (
                "Por favor, llama ahora a una línea de crisis o habla con alguien de confianza.",
                "Por favor, llama ahora a emergencias o busca a alguien de confianza.",
            ),
        ),
        "fr": (
            ("Tu n'as pas à porter cela tout seul.", "Tu comptes, et des gens veulent t'aider."),
            (
                "Appelle maintenant une ligne d'écoute ou parle à quelqu'un de confiance.",
                "Appelle maintenant les urgences ou rejoins quelqu'un de confiance.",
            ),
        ),
    }
)


def grammar(locale: str | None, *, crisis: bool) -> str:
    """Return the GBNF grammar that a tip in `locale` (BCP 47; None: English) follows."""
    language = locale.lower().partition("-")[0] if locale else "en"
    if crisis and language in _CRISIS_SENTENCES:
        choices = (" | ".join(f'"{sentence}"' for sentence in sentences) for sentences in _CRISIS_SENTENCES[language])
        return 'root ::= ({}) " " ({})'.format(*choices)
    return ENGLISH_GRAMMAR if language == "en" else ANY_GRAMMAR
