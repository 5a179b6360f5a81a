"""The context of a prompt, assembled from signals. A pure function; its text has a bounded length."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.features.crisis import states_crisis
from ml.features.definitions import SIGNALS


@dataclass(frozen=True, slots=True)
class PromptContext:
    """The signals of one request as English sentences.

    `sentences`: one sentence for each signal that is set, in the order of `SIGNALS`; double quotes delimit free text
    and appear nowhere else. `locale`: the BCP 47 locale to write in, if given. `crisis`: the user's goal states plainly
    that they may harm themselves.
    """

    sentences: tuple[str, ...] = ()
    locale: str | None = None
    crisis: bool = False

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
        crisis=states_crisis(signals.get("goal") or ""),
    )
