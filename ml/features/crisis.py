"""The detection of a crisis in free text, the request that replaces the usual one, and the fixed answers.

A crisis: a user states plainly that they may harm or kill themselves. The phrases are the plainest ones in a few
languages; every prompt asks the model to notice the others. No list of words is a safety system.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ml.features.free_text import normalise_words

Phrases = tuple[tuple[str, ...], ...]
"""The alternatives for each part of a phrase, in order. Lower case, no apostrophes; `*` stands for any ending."""

CRISIS_PHRASES: Mapping[str, Phrases] = MappingProxyType(
    {
        "suicide": (("suicid*", "suicíd*", "suizid*", "selbstmord*"),),
        "self-harm": (("self harm*", "selfharm*"),),
        "harming oneself": (
            ("kill", "killing", "hurt", "hurting", "harm", "harming", "cut", "cutting"),
            ("myself", "my self"),
        ),
        "ending one's life": (("end", "ending"), ("my life", "it all")),
        "wish to die": (("want to", "wish to", "wish i could", "going to", "ready to"), ("die",)),
        "no wish to live": (
            ("dont", "do not", "no longer"),
            ("want to", "wish to"),
            ("live", "be alive", "exist", "wake up"),
        ),
        "no reason to live": (("better off dead", "no reason to live"),),
        "German: killing oneself": (("mich", "mir"), ("umbringen", "das leben nehmen")),
        "German: wish to die": (("nicht mehr leben", "sterben will", "will sterben"),),
        "Spanish: wish to die": (("quiero", "quisiera"), ("morir",)),
        "Spanish: no wish to live": (("matarme", "no quiero vivir", "no quiero seguir viviendo"),),
        "French: wish to die": (("veux", "voudrais"), ("mourir", "plus vivre")),
        "French: killing oneself": (("me tuer",),),
    }
)

CRISIS_REQUEST = (
    "I may be in danger. Please only ask me, kindly and without any number, to call a crisis line or to talk to "
    "someone I trust right now."
)
"""The request to the model in a crisis, instead of the request for a tip."""

CRISIS_ANSWERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
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
"""For each language (ISO 639), the choices for the first and for the second sentence of an answer.

A small model only chooses between these sentences in a crisis.
"""


def crisis_pattern(phrases: Iterable[Phrases]) -> re.Pattern[str]:
    """Compile phrases to a pattern for normalised text."""

    def alternatives(part: tuple[str, ...]) -> str:
        return "|".join(alternative.replace("*", r"\w*") for alternative in part)

    phrase_patterns = (" ".join(f"(?:{alternatives(part)})" for part in phrase) for phrase in phrases)
    return re.compile(rf"\b(?:{'|'.join(phrase_patterns)})\b")


def states_crisis(text: str) -> bool:
    """Return whether a text states a crisis plainly."""
    return bool(_CRISIS.search(normalise_words(text)))


_CRISIS = crisis_pattern(CRISIS_PHRASES.values())
