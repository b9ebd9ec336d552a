"""Averages on TensorFlow: one compiled function an update."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy
import tensorflow as tf

from keras_wavg.averages.counting import Counters, advance, moved_towards
from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import Packing
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule


@final
class Averages(DeviceAverages):
    """Float32 averages of variables, on their devices.

    Args:
        variables: Keras variables of floating type.
        schedules: See `DeviceAverages`.
        start: Integer, the optimizer step from which samples count.
        device: See `DeviceAverages`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedules: tuple[Schedule, ...],
        start: int,
        device: str | None,
    ) -> None:
        super().__init__(schedules, device)
        self._variables = [variable.value for variable in variables]
        self._home = "CPU:0" if device else _only_device(self._variables)
        self._from_afar = device is not None
        dtypes = [_average_dtype(variable) for variable in self._variables]
        self._packing = Packing(
            tuple(tuple(variable.shape) for variable in self._variables),
            tuple(dtype == tf.float32 for dtype in dtypes),
        )
        self._averages, self._counters = _outside_of_scopes(
            lambda: self._own_variables(start)
        )
        self._functions: dict[tuple[int, int], Any] = {}

    @property
    def counters(self) -> Counters:
        """The counts, as integers."""
        return Counters(*self._counters.numpy().tolist())

    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""
        del model
        for averages in self._averages:
            _assign(averages, self._samples())

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        arrays = [
            tf.cast(tf.convert_to_tensor(average), _average_dtype(variable))
            for average, variable in zip(averages, self._variables, strict=True)
        ]
        _assign(self._averages[index], self._packing.pack(arrays))

    def _load_counters(self, counters: Counters) -> None:
        self._counters.assign(counters)

    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, where finite."""
        del model
        key = (id(reading.iterations), reading.batches_per_step)
        if key not in self._functions:
            self._functions[key] = self._compiled(reading)
        # Of Python's own numbers TensorFlow keeps each that it ever saw.
        steps = numpy.int64(reading.steps)
        with self._at_home():
            self._functions[key](tf.constant(steps))

    def read(self, index: int = 0) -> list[Any]:
        """An average in the order and shapes of the variables, as copies."""
        return list(self._reads[index]())

    def _own_variables(
        self, start: int
    ) -> tuple[list[list[tf.Variable]], tf.Variable]:
        with self._at_home():
            averages = [
                [tf.Variable(s, trainable=False) for s in self._samples()]
                for _ in self._schedules
            ]
            counters = tf.Variable([start, 0], trainable=False, dtype=tf.int64)
            return averages, counters

    @functools.cached_property
    def _reads(self) -> list[Any]:
        return [
            self._function(functools.partial(self._packing.unpack, averages))
            for averages in self._averages
        ]

    def _samples(self) -> list[tf.Tensor]:
        return self._packing.pack(
            [tf.cast(v, _average_dtype(v)) for v in self._variables]
        )

    def _compiled(self, reading: Reading) -> Any:
        steps = tf.TensorSpec([], tf.int64)

        def sampled(steps: tf.Tensor) -> list[tf.Tensor]:
            return [_now(steps, reading), *self._samples()]

        if not self._from_afar:
            return self._function(
                lambda steps: self._fold(*sampled(steps)),
                steps,
                jit_compile=self._home is not None,
            )
        # XLA cannot fetch from another device.
        fetch = self._function(sampled, steps)
        fold = self._function(
            self._fold,
            *(tf.TensorSpec(t.shape, t.dtype) for t in fetch.outputs),
            jit_compile=True,
        )
        return lambda steps: fold(*fetch(steps))

    def _function(
        self, function: Callable[..., Any], *signature: Any, **options: Any
    ) -> Any:
        def at_home(*arguments: Any) -> Any:
            with self._at_home():
                return function(*arguments)

        # Not the `tf.function` itself: what it does before each call costs as
        # much as the update of a small model.
        traced = tf.function(at_home, autograph=False, **options)
        return _outside_of_scopes(
            lambda: traced.get_concrete_function(*signature)
        )

    def _at_home(self) -> Any:
        return tf.device(self._home) if self._home else contextlib.nullcontext()

    def _fold(self, now: tf.Tensor, *samples: tf.Tensor) -> None:
        counters, coefficients = advance(
            Counters(*tf.unstack(self._counters)), now, self._schedules
        )
        for averages, coefficient in zip(
            self._averages, coefficients, strict=True
        ):
            _assign(
                averages,
                [
                    moved_towards(average, sample, coefficient)
                    for average, sample in zip(averages, samples, strict=True)
                ],
            )
        self._counters.assign(tf.stack(counters))


def _assign(averages: list[tf.Variable], arrays: list[tf.Tensor]) -> None:
    for average, array in zip(averages, arrays, strict=True):
        average.assign(array)


def _outside_of_scopes(function: Callable[[], Any]) -> Any:
    """What a function returns where no `tf.distribute` strategy is in scope.

    A variable that is made in a scope is mirrored. Scopes are of a thread.
    """
    if not tf.distribute.has_strategy():
        return function()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _only_device(variables: list[tf.Variable]) -> str | None:
    # XLA compiles for one device, and not for a strategy's replicas.
    devices = {variable.device for variable in variables}
    mirrored = isinstance(variables[0], tf.distribute.DistributedValues)
    return devices.pop() if len(devices) == 1 and not mirrored else None


def _now(steps: tf.Tensor, reading: Reading) -> tf.Tensor:
    if reading.iterations is None:
        return tf.identity(steps)
    batches = tf.cast(reading.iterations.value, tf.int64)
    return steps + batches // reading.batches_per_step


def _average_dtype(variable: tf.Variable) -> tf.DType:
    return tf.float64 if variable.dtype == tf.float64 else tf.float32
