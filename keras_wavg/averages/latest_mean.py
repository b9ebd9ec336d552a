"""The mean of the latest samples."""

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
    sorted_by_number,
)
from keras_wavg.profile import Profile


@final
@dataclass(frozen=True)
class LatestMean(Method):
    """The mean of the latest samples.

    Args:
        size: Positive integer, the maximum number of samples in the mean.
    """

    size: int

    def accumulator(self, variables: Sequence[Any]) -> "LatestSamples":
        """Create an accumulator of `size` samples."""
        return LatestSamples(variables, self.size)

    def extra_names(self, steps: int) -> Sequence[str]:
        """The names of the samples."""
        return numbered_names("sample", min(self.size, steps))

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """Equal coefficients of the latest samples."""
        return Profile.mean(times[-self.size :], now)


@final
class LatestSamples(HostAverage):
    """The latest samples and their mean.

    Args:
        variables: Keras variables with a floating-point dtype.
        size: Positive integer, the maximum number of samples.
    """

    def __init__(self, variables: Sequence[Any], size: int) -> None:
        super().__init__(variables)
        self._samples: deque[Arrays] = deque(maxlen=size)

    def extra_arrays(self) -> Mapping[str, Arrays]:
        """The samples, oldest first."""
        return numbered("sample", list(self._samples))

    def load_extra_arrays(self, arrays: Mapping[str, Sequence[Any]]) -> None:
        """Set the samples, from copies."""
        self._samples.clear()
        self._samples.extend(sorted_by_number("sample", arrays))

    def _add(self, model: Any, sample: Arrays) -> None:
        del model
        self._samples.append(sample)
        # Not updated incrementally: adding and subtracting samples would
        # accumulate rounding errors.
        self._average = [*map(_mean, zip(*self._samples, strict=True))]


def _mean(arrays: Sequence[numpy.ndarray]) -> numpy.ndarray:
    total = numpy.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return (total / len(arrays)).astype(arrays[0].dtype)
