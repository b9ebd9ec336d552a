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
    numbered,
    numbered_names,
    numpy_copies,
    sorted_by_number,
)
from keras_wavg.backend import host_copy, sharded_like

# As in the reference implementation.
_MIN_VARIANCE = 1e-30


@final
@dataclass(frozen=True)
class GaussianOfSamples(Method):
    """Mean and covariance of the samples.

    Args:
        rank: Integer, the number of latest deviations in the low-rank part.
    """

    rank: int

    def accumulator(self, variables: Sequence[Any]) -> "Gaussian":
        """Create a Gaussian of this rank."""
        return Gaussian(variables, self.rank)

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of the sums of squares and of the deviations."""
        deviations = numbered_names("deviation", min(self.rank, steps))
        return ["squares", *deviations] if steps else []


@final
class Gaussian(HostAverage):
    """Mean and covariance of the samples.

    Args:
        variables: Keras variables with a floating-point dtype.
        rank: Integer, the number of latest deviations in the low-rank part.
    """

    def __init__(self, variables: Sequence[Any], rank: int) -> None:
        super().__init__(variables)
        self._squares: Arrays = []
        self._deviations: deque[Arrays] = deque(maxlen=rank)

    def extra_arrays(self) -> Mapping[str, Arrays]:
        """The sums of squares, and the deviations, oldest first."""
        deviations = numbered("deviation", list(self._deviations))
        return {"squares": self._squares} | deviations

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the sums of squares and the deviations, from copies."""
        self._squares = numpy_copies(arrays["squares"])
        self._deviations.clear()
        self._deviations.extend(sorted_by_number("deviation", arrays))

    def sample(self, scale: float, seed: Any) -> Arrays:
        """Draw weights. Weights that are not trainable are set to the mean.

        Args:
            scale: Float that multiplies the covariance.
            seed: Seed for `numpy.random.default_rng`.

        Returns:
            List of arrays, one per variable.
        """
        rng = numpy.random.default_rng(seed)
        rank = len(self._deviations)
        low_rank_noise = rng.standard_normal(rank) / math.sqrt(rank - 1)
        return [
            mean + math.sqrt(scale) * self._noise(i, low_rank_noise, rng)
            if variable.trainable
            else mean
            for i, (variable, mean) in enumerate(
                zip(self._variables, self.read(), strict=True)
            )
        ]

    def _noise(
        self,
        index: int,
        low_rank_noise: numpy.ndarray,
        rng: numpy.random.Generator,
    ) -> numpy.ndarray:
        variable, squares = self._variables[index], self._squares[index]
        # Each process draws the noise of the whole variable and uses its part.
        noise = rng.standard_normal(tuple(variable.shape))
        local = host_copy(sharded_like(noise, variable))
        variance = numpy.maximum(squares / self._counters.steps, _MIN_VARIANCE)
        noise = numpy.sqrt(variance) * local
        for scale, deviation in zip(
            low_rank_noise, self._deviations, strict=True
        ):
            noise += scale * deviation[index]
        return noise.astype(squares.dtype)

    def _add(self, model: Any, sample: Arrays) -> None:
        del model
        means_before = self.read() or sample
        self._move_average(sample)
        deviations = [
            _finite(array - mean)
            for array, mean in zip(sample, self._average, strict=True)
        ]
        self._deviations.append(deviations)
        # Welford's algorithm. E[w**2] - mean**2 would lose the variance of
        # weights that hardly move to rounding.
        if not self._squares:
            self._squares = [numpy.zeros_like(array) for array in sample]
        self._squares = [
            squares + _finite(array - mean) * deviation
            for squares, array, mean, deviation in zip(
                self._squares, sample, means_before, deviations, strict=True
            )
        ]


def _finite(difference: numpy.ndarray) -> numpy.ndarray:
    """The differences, 0 for weights that have never been finite."""
    return numpy.where(numpy.isfinite(difference), difference, 0)
