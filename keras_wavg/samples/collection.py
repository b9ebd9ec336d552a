"""From the weights of a model to samples in host memory."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.backend import attach_weights, host_copies
from keras_wavg.backend.counting import Counters
from keras_wavg.clock import Reading

Arrays = list[numpy.ndarray]


class Collection(abc.ABC):
    """Samples of variables, and their average. Abstract.

    Args:
        variables: Keras variables of floating type.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._average: Arrays = []
        self.counters = Counters(0, 0)

    def bind(self, model: Any) -> None:
        """Nothing to learn: the variables are read where they are."""
        del model

    def update(self, model: Any, reading: Reading) -> None:
        """Take a sample of the weights of now.

        An element that is NaN or infinite counts as the average so far.
        """
        attach_weights(model)
        now = reading.now()
        if now <= self.counters.last:
            return
        sample = [_averaged_dtype(a) for a in _values_of(self._variables)]
        if self._average:
            sample = [*map(_finite_or, sample, self._average)]
        self.counters = Counters(now, self.counters.steps + 1)
        # Elements that were never finite stay so.
        with numpy.errstate(invalid="ignore"):
            self._take(model, sample)

    def read(self) -> Arrays:
        """The average in the order and shapes of the variables, as copies."""
        return [array.copy() for array in self._average]

    def copies(self, variables: Sequence[Any]) -> list[Any]:
        """Copies of variables, in host memory."""
        return host_copies(variables)

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the average and the counts be these, copied."""
        self._average = [_averaged_dtype(array) for array in owned(averages)]
        self.counters = Counters(*map(int, counters))

    @abc.abstractmethod
    def kept(self) -> Mapping[str, Arrays]:
        """What there is besides the average: by name, for each variable."""

    @abc.abstractmethod
    def keep(self, kept: Mapping[str, Arrays]) -> None:
        """Take over what `kept` gave."""

    @abc.abstractmethod
    def _take(self, model: Any, sample: Arrays) -> None:
        """Make the sample, the `counters.steps`-th one, part of the average."""

    def _move_average(self, sample: Arrays) -> None:
        if not self._average:
            self._average = [array.copy() for array in sample]
        self._average = [
            moved_towards(average, array, 1 / self.counters.steps)
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


def numbers(name: str, count: int) -> list[str]:
    """So many names, counted from 0 on."""
    return [f"{name}_{i}" for i in range(count)]


def numbered(name: str, lists: Sequence[Arrays]) -> dict[str, Arrays]:
    """Lists of arrays by names that count them."""
    return dict(zip(numbers(name, len(lists)), lists, strict=True))


def in_order(name: str, kept: Mapping[str, Arrays]) -> list[Arrays]:
    """Copies of the lists that `numbered` gave such names."""
    count = sum(key.startswith(f"{name}_") for key in kept)
    return [owned(kept[key]) for key in numbers(name, count)]


def owned(arrays: Sequence[Any]) -> Arrays:
    """Copies of tensors as NumPy arrays, safe from who owns them."""
    return [numpy.array(keras.ops.convert_to_numpy(a)) for a in arrays]


def _averaged_dtype(array: numpy.ndarray) -> numpy.ndarray:
    wide = array.dtype == numpy.float64
    return array if wide else array.astype("float32", copy=False)
