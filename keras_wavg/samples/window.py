"""The latest samples, and their mean."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from keras_wavg.samples.collection import (
    Arrays,
    Collection,
    in_order,
    numbered,
    numbers,
)


class Window(Collection):
    """The mean of the latest samples.

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

    def keep(self, kept: Mapping[str, Arrays]) -> None:
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


def window_keeps(size: int, samples: int) -> Sequence[str]:
    """The names of what a window of that size keeps after so many samples."""
    return numbers("sample", min(size, samples))
