"""Who gets which option: every assignment comes with the probability that it had."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Assignment:
    """The option taken, its probability (propensity), and the whole distribution that it was drawn from."""

    option: str
    probability: float
    distribution: Mapping[str, float]


def hash_to_unit_interval(*parts: str) -> float:
    """A number in [0, 1), uniform over the parts: chance that can be looked up again, from what a row holds anyway.

    The same for ever, in any process, on any machine: 53 bits of SHA-256. Each part goes in with its length, so that
    no two sequences of parts are one text.
    """
    hashed = sha256()
    for part in parts:
        data = part.encode()
        hashed.update(len(data).to_bytes(8) + data)
    return (int.from_bytes(hashed.digest()[:8]) >> 11) * 2**-53


def draw_weighted(weights: Mapping[str, float], u: float) -> Assignment:
    """Draw an option with probability proportional to its weight.

    `weights`: none below zero, at least one above; one of zero is never taken. `u`: uniform in [0, 1), the only source
    of chance: the same `u` gives the same assignment (inverse transform sampling).
    """
    distribution = normalised(weights)
    ends = accumulate(distribution.values())
    # Rounding may end the last one below `u`.
    last = [option for option, share in distribution.items() if share][-1]
    taken = next((option for option, end in zip(weights, ends, strict=True) if u < end), last)
    return Assignment(taken, distribution[taken], distribution)


def draw_sticky(weights: Mapping[str, float], user_id: str, *, salt: str) -> Assignment:
    """Give a person the same option each time, and each option a share of all people as large as its weight's share.

    When weights change, or options come or go, no more people move than must, and all of them in the direction of the
    change: an option that is added takes people from the others, who keep the rest. The propensity is over the hash:
    that of a person chosen at random. `weights`: at least one, all above zero. Another `salt` shuffles people anew.

    Weighted rendezvous hashing: each option draws an exponential time at the rate of its weight, and the first one
    wins. Sources: Thaler & Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
    Networking 1998; Schindelhauer & Schomaker, "Weighted distributed hash tables", SPAA 2005 (the logarithmic method).
    """

    def time(option: str) -> float:
        return -math.log(1 - hash_to_unit_interval(salt, user_id, option)) / weights[option]

    taken, distribution = min(weights, key=time), normalised(weights)
    return Assignment(taken, distribution[taken], distribution)


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights divided by their sum: the probability of each option."""
    total = sum(weights.values())
    return {option: weight / total for option, weight in weights.items()}
