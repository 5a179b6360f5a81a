"""From signals to the context of a prompt: pure, bounded, and with people's own words marked as data."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.features.definitions import SIGNALS


@dataclass(frozen=True, slots=True)
class PromptContext:
    """What we know about one person, in words.

    `sentences`: one English sentence for each known signal, in the order of `SIGNALS`; free text stands between
    double quotes and nothing else does. `locale`: the BCP 47 locale to write in, if given. `crisis`: the person's own
    words say plainly that they may harm themselves.
    """

    sentences: tuple[str, ...] = ()
    locale: str | None = None
    crisis: bool = False

    @property
    def text(self) -> str:
        """All sentences as one line."""
        return " ".join(self.sentences)


def assemble_context(signals: Mapping[str, Any]) -> PromptContext:
    """Put validated `signals` into words; a signal that is missing, None or blank is left out.

    Raises KeyError for a name that is not in `SIGNALS`.
    """
    unknown = signals.keys() - SIGNALS.keys()
    if unknown:
        raise KeyError(*sorted(unknown))
    known = ((signal, signals.get(name)) for name, signal in SIGNALS.items())
    spoken = ((signal.sentence, signal.type.words(value)) for signal, value in known if value is not None)
    return PromptContext(
        sentences=tuple(sentence.format(words) for sentence, words in spoken if words),
        locale=signals.get("locale"),
        crisis=bool(_CRISIS.search(signals.get("goal") or "")),
    )


# The plainest ways to say it in a few languages. Every prompt asks the model to watch for the rest; a small model needs
# to be told. No list of words is a safety system.
_CRISIS = re.compile(
    r"suicid|suizid|suicíd|selbstmord"
    r"|\b(kill|hurt|harm|cut)(ing)? (my ?self)\b|\bself[- ]?harm|\bend(ing)? (my life|it all)\b"
    r"|\b(want|wish|going|ready) (to|i could) die\b|\bbetter off dead\b|\bno reason to live\b"
    r"|\b(don['’]?t|do not|no longer) (want|wish) to (live|be alive|exist|wake up)\b"
    r"|\b(mich|mir) (umbringen|das leben nehmen)\b|\bnicht mehr leben\b|\bsterben will\b|\bwill sterben\b"
    r"|\b(quiero|quisiera) morir|\bmatarme\b|\bno quiero (vivir|seguir viviendo)\b"
    r"|\b(veux|voudrais) mourir\b|\bme tuer\b|\b(veux|voudrais) plus vivre\b",
    re.IGNORECASE,
)
