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
    in_order,
    numbered,
    numbered_names,
)
from keras_wavg.profile import Profile


@final
@dataclass(frozen=True)
class LatestMean(Method):
    """The mean of the latest samples.

    Args:
        size: Positive integer, the most samples in the mean.
    """

    size: int

    def accumulator(self, variables: Sequence[Any]) -> "Window":
        """A window of that size."""
        return Window(variables, self.size)

    def keeps(self, steps: int) -> Sequence[str]:
        """The samples."""
        return numbered_names("sample", min(self.size, steps))

    def profile(self, times: Sequence[float], now: int) -> Profile:
        """The same share of each of the latest samples."""
        return Profile.mean(times[-self.size :], now)


@final
class Window(HostAverage):
    """The latest samples, and their mean.

    Args:
        variables: Keras variables of floating type.
        size: Positive integer, the most samples there are.
    """

    def __init__(self, variables: Sequence[Any], size: int) -> None:
        super().__init__(variables)
        self._samples: deque[Arrays] = deque(maxlen=size)

    def kept(self) -> Mapping[str, Arrays]:
        """The samples, the oldest first."""
        return numbered("sample", list(self._samples))

    def keep(self, kept: Mapping[str, Sequence[Any]]) -> None:
        """Take the samples over."""
        self._samples.clear()
        self._samples.extend(in_order("sample", kept))

    def _take(self, model: Any, sample: Arrays) -> None:
        del model
        self._samples.append(sample)
        # Not moved along: what is added and taken out again leaves its
        # rounding errors behind.
        self._average = [*map(_mean, zip(*self._samples, strict=True))]


def _mean(arrays: Sequence[numpy.ndarray]) -> numpy.ndarray:
    total = numpy.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return (total / len(arrays)).astype(arrays[0].dtype)
