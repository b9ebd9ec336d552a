"""A Gaussian over weights: SWAG's mean, diagonal and low-rank covariance."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy

from keras_wavg.averages.base import Method
from keras_wavg.averages.host import (
    Arrays,
    HostAverage,
    in_order,
    numbered,
    numbered_names,
    owned,
)
from keras_wavg.backend import host_copy, laid_out

# Of the reference implementation: what a variance is at least.
_LEAST_VARIANCE = 1e-30


@final
@dataclass(frozen=True)
class GaussianOfSamples(Method):
    """Mean and covariance of the samples.

    Args:
        rank: Integer, the latest deviations that make the low-rank part.
    """

    rank: int

    def accumulator(self, variables: Sequence[Any]) -> "Gaussian":
        """A Gaussian of that rank."""
        return Gaussian(variables, self.rank)

    def keeps(self, steps: int) -> Sequence[str]:
        """Sums of squares, and the deviations."""
        deviations = numbered_names("deviation", min(self.rank, steps))
        return ["squares", *deviations] if steps else []


@final
class Gaussian(HostAverage):
    """Mean and covariance of the samples.

    Args:
        variables: Keras variables of floating type.
        rank: See `GaussianOfSamples`.
    """

    def __init__(self, variables: Sequence[Any], rank: int) -> None:
        super().__init__(variables)
        self._squares: Arrays = []
        self._deviations: deque[Arrays] = deque(maxlen=rank)

    def kept(self) -> Mapping[str, Arrays]:
        """Sums of squares, and the deviations, the oldest first."""
        deviations = numbered("deviation", list(self._deviations))
        return {"squares": self._squares} | deviations

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Take them over."""
        self._squares = owned(kept["squares"])
        self._deviations.clear()
        self._deviations.extend(in_order("deviation", kept))

    def sample(self, scale: float, seed: Any) -> Arrays:
        """Draw weights; those that no gradient trains are the mean's.

        Args:
            scale: Float, what the covariance is multiplied by.
            seed: What `numpy.random.default_rng` takes.

        Returns:
            List of arrays, one for each variable.
        """
        rng = numpy.random.default_rng(seed)
        columns = len(self._deviations)
        shared = rng.standard_normal(columns) / math.sqrt(columns - 1)
        return [
            mean + math.sqrt(scale) * self._noise(i, variable, shared, rng)
            if variable.trainable
            else mean
            for i, (variable, mean) in enumerate(
                zip(self._variables, self.read(), strict=True)
            )
        ]

    def _noise(
        self, i: int, variable: Any, shared: numpy.ndarray, rng: Any
    ) -> numpy.ndarray:
        squares = self._squares[i]
        # Drawn as a whole by each process, which takes its own part of it.
        noise = rng.standard_normal(tuple(variable.shape))
        own = host_copy(laid_out(noise, variable))
        variance = numpy.maximum(
            squares / self._counters.steps, _LEAST_VARIANCE
        )
        noise = numpy.sqrt(variance) * own
        for factor, deviation in zip(shared, self._deviations, strict=True):
            noise += factor * deviation[i]
        return noise.astype(squares.dtype)

    def _take(self, model: Any, sample: Arrays) -> None:
        del model
        before = self.read() or sample
        self._move_average(sample)
        deviations = [
            _finite(array - mean)
            for array, mean in zip(sample, self._average, strict=True)
        ]
        self._deviations.append(deviations)
        # Welford's sum. E[w**2] - mean**2 would lose the variance of weights
        # that hardly move to rounding.
        if not self._squares:
            self._squares = [numpy.zeros_like(array) for array in sample]
        self._squares = [
            squares + _finite(array - mean) * deviation
            for squares, array, mean, deviation in zip(
                self._squares, sample, before, deviations, strict=True
            )
        ]


def _finite(difference: numpy.ndarray) -> numpy.ndarray:
    """Differences, where weights were never finite none."""
    return numpy.where(numpy.isfinite(difference), difference, 0)
