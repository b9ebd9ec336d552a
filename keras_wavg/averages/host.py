"""Averages in host memory, most of which keep their samples."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.averages.base import Accumulator
from keras_wavg.averages.update_rule import Counters
from keras_wavg.backend import host_copies, host_copy, sync_weights
from keras_wavg.clock import UpdateTime

Arrays = list[numpy.ndarray]


class HostAverage(Accumulator):
    """An average of samples in host memory. Abstract.

    Args:
        variables: Keras variables with a floating-point dtype.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._average: Arrays = []
        self._counters = Counters(0, 0)

    @property
    def counters(self) -> Counters:
        """The counters, as integers."""
        return self._counters

    @property
    def is_empty(self) -> bool:
        """Whether the average has neither been started nor updated."""
        return not self._average

    def start(self, model: Any) -> None:
        """Set the average to the current weights."""
        sync_weights(model)
        self.load([v.value for v in self._variables], self._counters)

    def update(self, model: Any, time: UpdateTime) -> None:
        """Add the current weights as a sample.

        NaN and infinite elements are replaced by those of the average.
        """
        sync_weights(model)
        now = time.now()
        if now <= self._counters.last:
            return
        sample = [_averaged_dtype(a) for a in _values_of(self._variables)]
        if self._average:
            sample = [*map(_finite_or, sample, self._average)]
        self._counters = Counters(now, self._counters.steps + 1)
        # Elements that have never been finite are not finite in the average.
        with numpy.errstate(invalid="ignore"):
            self._add(model, sample)

    def read(self, index: int = 0) -> Arrays:
        """Copies of the average, in the order and shapes of the variables."""
        del index
        return [array.copy() for array in self._average]

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, in host memory."""
        return host_copies(variables)

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Set the average and the counters, from copies."""
        self._average = [
            _averaged_dtype(array) for array in numpy_copies(averages)
        ]
        self._counters = Counters(*map(int, counters))

    @abc.abstractmethod
    def _add(self, model: Any, sample: Arrays) -> None:
        """Add a sample to the average. The counters include it already."""

    def _move_average(self, sample: Arrays) -> None:
        if not self._average:
            self._average = [array.copy() for array in sample]
        self._average = [
            moved_towards(average, array, 1 / self._counters.steps)
            for average, array in zip(self._average, sample, strict=True)
        ]


def moved_towards(
    average: numpy.ndarray, sample: numpy.ndarray, coefficient: float
) -> numpy.ndarray:
    """The average after a sample, which replaces elements not finite."""
    moved = average + average.dtype.type(coefficient) * (sample - average)
    return numpy.where(numpy.isfinite(average), moved, sample)


def _finite_or(array: numpy.ndarray, other: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(numpy.isfinite(array), array, other)


def _values_of(variables: Sequence[Any]) -> Arrays:
    return [keras.ops.convert_to_numpy(a) for a in host_copies(variables)]


def numbered_names(name: str, count: int) -> list[str]:
    """`count` names, numbered from 0."""
    return [f"{name}_{i}" for i in range(count)]


def numbered(name: str, lists: Sequence[Arrays]) -> dict[str, Arrays]:
    """Lists of arrays by `numbered_names`."""
    return dict(zip(numbered_names(name, len(lists)), lists, strict=True))


def sorted_by_number(
    name: str, arrays: Mapping[str, Sequence[Any]]
) -> list[Arrays]:
    """Copies of the lists in a dict of `numbered`, in their order."""
    count = sum(key.startswith(f"{name}_") for key in arrays)
    return [numpy_copies(arrays[key]) for key in numbered_names(name, count)]


def numpy_copies(arrays: Sequence[Any]) -> Arrays:
    """Copies of tensors as NumPy arrays that own their memory."""
    return [*map(host_copy, arrays)]


def _averaged_dtype(array: numpy.ndarray) -> numpy.ndarray:
    is_double = array.dtype == numpy.float64
    return array if is_double else array.astype("float32", copy=False)
