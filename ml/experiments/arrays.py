"""Array types, and checks of the shapes and ranges of input arrays. NaN fails every check."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

PROBABILITY_TOLERANCE = 1e-6
"""The largest rounding error of a probability that is accepted; single-precision policies need it."""


def check_range(name: str, values: Floats, shape: tuple[int, ...], low: float, high: float) -> None:
    """Raise ValueError unless `values` has this shape and all its numbers are from `low` to `high`."""
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape {shape}, not {values.shape}")
    # Written so that NaN fails.
    if values.size and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{name} must be numbers from {low:g} to {high:g}")


def check_distributions(name: str, probabilities: Floats, shape: tuple[int, int]) -> None:
    """Raise ValueError unless `probabilities` has this shape and each row is a probability distribution."""
    check_range(name, probabilities, shape, 0, 1)
    if not (abs(probabilities.sum(axis=1) - 1) <= PROBABILITY_TOLERANCE).all():
        raise ValueError(f"{name} must sum to 1 at each decision")


def check_option_indices(options: Integers, n: int, n_options: int) -> None:
    """Raise ValueError unless `options` has the shape (n,) and holds integers from 0 to `n_options` - 1."""
    check_integers("options", options, n)
    if n and not (options.min() >= 0 and options.max() < n_options):
        raise ValueError(f"options must be from 0 to {n_options - 1}")


def check_integers(name: str, values: Integers, n: int) -> None:
    """Raise ValueError unless `values` has the shape (n,) and an integer type."""
    if values.shape != (n,):
        raise ValueError(f"{name} must have the shape {(n,)}, not {values.shape}")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} must be integers")
