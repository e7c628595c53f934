"""What a mean over questions says of questions to come: intervals and paired tests, by resampling, from a fixed seed.

bootstrap     percentiles of the means of N values drawn with replacement (Efron 1979), 95%
paired        the same of the differences of two systems on the same questions; and the share of random exchanges
              of the two whose difference is at least as large (Fisher's randomization test; Smucker et al. 2007)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import BadInputError

Floats = npt.NDArray[np.float64]
_DRAWS, _SLICE, _SEED = 10_000, 1_000, 20_070_626
_TAILS = (2.5, 97.5)


@dataclass(frozen=True)
class Mean:
    """Of `count` values, with its interval of 95%."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean of one system less another's on the same questions, its interval of 95%, and the test's p."""

    value: float
    low: float
    high: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_mean(values_n: Floats) -> Mean:
    """Raises BadInputError for no value, or one that is not finite."""
    values = _checked(values_n)
    low, high = _interval(values)
    return Mean(float(values.mean()), low, high, len(values))


def paired_difference(one_n: Floats, other_n: Floats) -> Difference:
    """Of two systems' values (N,), question by question. Raises BadInputError where they are not as many."""
    if len(one_n) != len(other_n):
        raise BadInputError(f"{len(one_n)} and {len(other_n)} values are not of the same questions")
    differences = _checked(np.asarray(one_n) - np.asarray(other_n))
    low, high = _interval(differences)
    found = abs(differences.mean())
    generator = np.random.default_rng(_SEED)
    as_large = 0
    for _ in range(0, _DRAWS, _SLICE):
        signs = generator.choice((-1.0, 1.0), size=(_SLICE, len(differences)))
        as_large += int((np.abs((signs * differences).mean(axis=1)) >= found - 1e-12).sum())
    return Difference(float(differences.mean()), low, high, (as_large + 1) / (_DRAWS + 1))


def _interval(values: Floats) -> tuple[float, float]:
    generator = np.random.default_rng(_SEED)
    means = [
        values[generator.integers(0, len(values), size=(_SLICE, len(values)))].mean(axis=1)
        for _ in range(0, _DRAWS, _SLICE)
    ]
    low, high = np.percentile(np.concatenate(means), _TAILS)
    return float(low), float(high)


def _checked(values: Floats) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise BadInputError("there is no value to take a mean of")
    if not np.isfinite(values).all():
        raise BadInputError("a value is not finite; a metric must give a number for every question")
    return values
