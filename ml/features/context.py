"""The context of a prompt, assembled from signals. A pure function; its text has a bounded length."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml.features.crisis import states_crisis
from ml.features.definitions import SIGNALS
from ml.features.instructions import gives_instructions
from ml.features.text_types import FreeText, Text


@dataclass(frozen=True, slots=True)
class PromptContext:
    """The signals of one request as English sentences.

    `sentences`: one sentence for each signal that is set, in the order of `SIGNALS`; double quotes delimit free text
    and appear nowhere else. `locale`: the BCP 47 locale to write in, if given. `crisis`: a free text states plainly
    that the user may harm themselves. `signals`: the signals that the sentences state.
    """

    sentences: tuple[str, ...] = ()
    locale: str | None = None
    crisis: bool = False
    signals: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """All sentences as one line."""
        return " ".join(self.sentences)


def assemble_context(signals: Mapping[str, Any], *, with_free_text: bool = True) -> PromptContext:
    """Return the context of validated `signals`; a signal that is missing, None or blank is left out.

    So is free text that gives instructions to the model, and all free text unless `with_free_text`. A crisis that it
    states is detected in any case.

    Raises KeyError for a name that is not in `SIGNALS`.
    """
    unknown = signals.keys() - SIGNALS.keys()
    if unknown:
        raise KeyError(*sorted(unknown))
    sentences, stated, crisis = [], {}, False
    for name, signal in SIGNALS.items():
        if (value := signals.get(name)) is None:
            continue
        if isinstance(signal.type, FreeText):
            texts = signal.type.texts(value)
            crisis = crisis or any(map(states_crisis, texts))
            if not with_free_text or gives_instructions(" ".join(texts)):
                continue
        if wording := signal.type.words(value):
            sentences.append(signal.sentence.format(wording))
            stated[name] = value
    return PromptContext(tuple(sentences), signals.get("locale"), crisis, stated)


def own_words(signals: Mapping[str, Any]) -> str:
    """Return the texts that the user wrote, without earlier tips, as one text."""
    return "\n".join(value for name, value in signals.items() if value and isinstance(SIGNALS[name].type, Text))
