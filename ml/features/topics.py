"""The topics of a text: a few topics, each with the English words that indicate it."""

import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "sleep": "sleep sleeping asleep bed bedtime bedroom nap pillow night tonight lights",
        "movement": "walk walking move moving stretch stretching stand steps run exercise dance shoulders neck stairs",
        "breath": "breath breaths breathe breathing inhale exhale",
        "rest": "rest resting relax calm quiet pause break stress stressed slow slowly bath",
        "focus": "focus task tasks list plan work working desk priority priorities finish timer distraction meeting",
        "food": "eat eating food meal snack water drink drinking glass tea coffee fruit breakfast lunch dinner",
        "people": "friend friends family call text talk someone partner message together people",
        "outdoors": "outside outdoors fresh air nature park sun sunlight daylight garden window",
        "screens": "phone screen screens email emails notifications laptop scroll scrolling social media",
        "feelings": "feel feeling mood grateful gratitude kind happy worry worries anxious write journal thank",
    }
)

TOPICS: tuple[str, ...] = tuple(_WORDS)

_TOPIC_INDEX = {word.encode(): index for index, words in enumerate(_WORDS.values()) for word in words.split()}
_LETTERS_ONLY = bytes(byte if byte in string.ascii_lowercase.encode() else ord(" ") for byte in range(256))


def topic_matrix(texts: Sequence[Any] | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return a row for each of n texts, with a one in the columns of its topics, shape (n, number of `TOPICS`).

    A value that is not a text is missing: its row is NaN. A text in another language than English has no topic.
    """
    matrix = np.zeros((len(texts), len(TOPICS)))
    ones, topic_of_word = [], _TOPIC_INDEX.get
    for row, text in enumerate(texts):
        if isinstance(text, str):
            start = row * len(TOPICS)
            # Splitting bytes takes a fifth of the time of a regular expression, and a request may have fifty texts.
            for word in text.lower().encode(errors="replace").translate(_LETTERS_ONLY).split():
                topic = topic_of_word(word)
                if topic is not None:
                    ones.append(start + topic)
        else:
            matrix[row] = np.nan
    matrix.ravel()[ones] = 1.0  # all at once: numpy's calls cost most
    return matrix
