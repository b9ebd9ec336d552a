"""Averages in host memory, most of which keep the samples they are made of."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.averages.base import Accumulator
from keras_wavg.averages.counting import Counters
from keras_wavg.backend import attach_weights, host_copies, host_copy
from keras_wavg.clock import Reading

Arrays = list[numpy.ndarray]


class HostAverage(Accumulator):
    """An average of samples in host memory. Abstract.

    Args:
        variables: Keras variables of floating type.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._average: Arrays = []
        self._counters = Counters(0, 0)

    @property
    def counters(self) -> Counters:
        """The counts, as integers."""
        return self._counters

    @property
    def is_empty(self) -> bool:
        """Whether there was neither a sample nor a beginning."""
        return not self._average

    def begin(self, model: Any) -> None:
        """Let the average be the weights of now."""
        attach_weights(model)
        self.load([v.value for v in self._variables], self._counters)

    def update(self, model: Any, reading: Reading) -> None:
        """Take a sample of the weights of now.

        An element that is NaN or infinite counts as the average so far.
        """
        attach_weights(model)
        now = reading.now()
        if now <= self._counters.last:
            return
        sample = [_averaged_dtype(a) for a in _values_of(self._variables)]
        if self._average:
            sample = [*map(_finite_or, sample, self._average)]
        self._counters = Counters(now, self._counters.steps + 1)
        # Elements that were never finite stay so.
        with numpy.errstate(invalid="ignore"):
            self._take(model, sample)

    def read(self, index: int = 0) -> Arrays:
        """The average in the order and shapes of the variables, as copies."""
        del index
        return [array.copy() for array in self._average]

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, in host memory."""
        return host_copies(variables)

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the average and the counts be these, copied."""
        self._average = [_averaged_dtype(array) for array in owned(averages)]
        self._counters = Counters(*map(int, counters))

    @abc.abstractmethod
    def _take(self, model: Any, sample: Arrays) -> None:
        """Make a sample, the last that is counted, part of the average."""

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
    """The average after a sample. What is not finite in it is the sample's."""
    moved = average + average.dtype.type(coefficient) * (sample - average)
    return numpy.where(numpy.isfinite(average), moved, sample)


def _finite_or(array: numpy.ndarray, other: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(numpy.isfinite(array), array, other)


def _values_of(variables: Sequence[Any]) -> Arrays:
    """The values of variables as NumPy arrays of their own."""
    return [keras.ops.convert_to_numpy(a) for a in host_copies(variables)]


def numbered_names(name: str, count: int) -> list[str]:
    """So many names, counted from 0 on."""
    return [f"{name}_{i}" for i in range(count)]


def numbered(name: str, lists: Sequence[Arrays]) -> dict[str, Arrays]:
    """Lists of arrays by names that count them."""
    return dict(zip(numbered_names(name, len(lists)), lists, strict=True))


def in_order(name: str, kept: Mapping[str, Sequence[Any]]) -> list[Arrays]:
    """Copies of the lists that `numbered` gave such names."""
    count = sum(key.startswith(f"{name}_") for key in kept)
    return [owned(kept[key]) for key in numbered_names(name, count)]


def owned(arrays: Sequence[Any]) -> Arrays:
    """Copies of tensors as NumPy arrays, safe from who owns them."""
    return [*map(host_copy, arrays)]


def _averaged_dtype(array: numpy.ndarray) -> numpy.ndarray:
    wide = array.dtype == numpy.float64
    return array if wide else array.astype("float32", copy=False)
