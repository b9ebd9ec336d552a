"""From the weights of a model to samples in host memory."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy

from keras_wavg.backend import attach_weights
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
        self.counters = Counters(0, 0, 0)

    def bind(self, model: Any) -> None:
        """Nothing to learn: the variables are read where they are."""
        del model

    def update(self, model: Any, reading: Reading) -> None:
        """Take a sample of the weights of now, if all are finite."""
        attach_weights(model)
        last, samples, skipped = self.counters
        now = reading.now()
        if now <= last:
            return
        sample = [_averaged_dtype(a) for a in host_copies(self._variables)]
        if all(numpy.isfinite(array).all() for array in sample):
            self.counters = Counters(now, samples + 1, skipped)
            self._take(model, sample)
        else:
            self.counters = Counters(now, samples, skipped + 1)

    def read(self) -> Arrays:
        """The average in the order and shapes of the variables, as copies."""
        return [array.copy() for array in self._average]

    def are_in_model(self) -> bool:
        """Whether the variables are the average, each in its own dtype."""
        return all(
            numpy.array_equal(
                keras.ops.convert_to_numpy(keras.ops.cast(a, v.dtype)),
                keras.ops.convert_to_numpy(v.value),
            )
            for a, v in zip(self._average, self._variables, strict=True)
        )

    def snapshot(self) -> Arrays:
        """The values of the variables, safe from what happens to them next."""
        return host_copies(self._variables)

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
            self._average = [numpy.zeros_like(array) for array in sample]
        self._average = [
            average + (array - average) / self.counters.steps
            for average, array in zip(self._average, sample, strict=True)
        ]


def host_copies(variables: Sequence[Any]) -> Arrays:
    """The values of variables as NumPy arrays of their own."""
    return owned([variable.value for variable in variables])


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
