"""Rows of numbers: what must hold of those that come in."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

ROUNDING = 1e-6
"""How far probabilities may be off through rounding: those of single-precision policies are."""


def check(name: str, values: Floats, shape: tuple[int, ...], low: float, high: float) -> None:
    """Raise ValueError if the numbers have another shape, or leave the range from `low` to `high`."""
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {values.shape}")
    # Written so that NaN fails.
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{name} must be numbers from {low:g} to {high:g}")


def check_policy(name: str, policy: Floats, shape: tuple[int, int]) -> None:
    """Raise ValueError if a policy has another shape, or a row of it is no distribution."""
    check(name, policy, shape, 0, 1)
    if not (abs(policy.sum(axis=1) - 1) <= ROUNDING).all():
        raise ValueError(f"{name} must sum to 1 at each decision")


def check_options(options: Integers, n: int, n_options: int) -> None:
    """Raise ValueError if these are not `n` options from 0 to `n_options` - 1."""
    check_labels("options", options, n)
    if n and not (options.min() >= 0 and options.max() < n_options):
        raise ValueError(f"options must be from 0 to {n_options - 1}")


def check_labels(name: str, labels: Integers, n: int) -> None:
    """Raise ValueError if these are not `n` whole numbers."""
    if labels.shape != (n,):
        raise ValueError(f"{name} must have the shape {(n,)}, not {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be whole numbers")
