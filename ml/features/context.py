"""From signals to the context of a prompt: pure, bounded, and with people's own words marked as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.features.definitions import SIGNALS


@dataclass(frozen=True, slots=True)
class PromptContext:
    """What we know about one person, in words.

    `sentences`: one English sentence for each known signal, in the order of `SIGNALS`; free text stands between
    double quotes and nothing else does. `locale`: the BCP 47 locale to write in, if given.
    """

    sentences: tuple[str, ...] = ()
    locale: str | None = None

    @property
    def text(self) -> str:
        """All sentences as one line."""
        return " ".join(self.sentences)


def assemble(signals: Mapping[str, Any]) -> PromptContext:
    """Put validated `signals` into words; a signal that is missing, None or blank is left out.

    Raises KeyError for a name that is not in `SIGNALS`.
    """
    unknown = signals.keys() - SIGNALS.keys()
    if unknown:
        raise KeyError(*sorted(unknown))
    known = ((signal, signals.get(name)) for name, signal in SIGNALS.items())
    spoken = ((signal.sentence, signal.kind.words(value)) for signal, value in known if value is not None)
    return PromptContext(
        sentences=tuple(sentence.format(words) for sentence, words in spoken if words),
        locale=signals.get("locale"),
    )
