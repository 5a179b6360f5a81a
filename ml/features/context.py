"""The context of a prompt, assembled from signals. A pure function; its text has a bounded length."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml.features.definitions import SIGNALS


@dataclass(frozen=True, slots=True)
class PromptContext:
    """The signals of one request as English sentences.

    `sentences`: one sentence for each signal that is set, in the order of `SIGNALS`; double quotes delimit free text
    and appear nowhere else. `locale`: the BCP 47 locale to write in, if given. `crisis`: the user's goal states plainly
    that they may harm themselves. `signals`: the signals themselves.
    """

    sentences: tuple[str, ...] = ()
    locale: str | None = None
    crisis: bool = False
    signals: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """All sentences as one line."""
        return " ".join(self.sentences)


def assemble_context(signals: Mapping[str, Any]) -> PromptContext:
    """Return the context of validated `signals`; a signal that is missing, None or blank is left out.

    Raises KeyError for a name that is not in `SIGNALS`.
    """
    unknown = signals.keys() - SIGNALS.keys()
    if unknown:
        raise KeyError(*sorted(unknown))
    values = ((signal, signals.get(name)) for name, signal in SIGNALS.items())
    wordings = ((signal.sentence, signal.type.words(value)) for signal, value in values if value is not None)
    return PromptContext(
        sentences=tuple(sentence.format(wording) for sentence, wording in wordings if wording),
        locale=signals.get("locale"),
        crisis=bool(_CRISIS.search(signals.get("goal") or "")),
        signals=signals,
    )


# The plainest expressions in a few languages. Every prompt asks the model to notice the others; a small model needs
# explicit instructions. No list of words is a safety system.
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
