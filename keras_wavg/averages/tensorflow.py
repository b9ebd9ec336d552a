"""Averages on TensorFlow: one compiled function call per update."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final

import numpy
import tensorflow as tf

from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import Packing
from keras_wavg.averages.update_rule import Counters, advance, moved_towards
from keras_wavg.clock import UpdateTime


@final
class Averages(DeviceAverages):
    """Averages of variables on their devices."""

    def _allocate(self, start: int) -> None:
        self._tf_variables = [v.value for v in self._variables]
        self._placement = (
            "CPU:0" if self._device else _only_device(self._tf_variables)
        )
        dtypes = [_average_dtype(variable) for variable in self._tf_variables]
        self._packing = Packing(
            tuple(tuple(variable.shape) for variable in self._tf_variables),
            tuple(dtype == tf.float32 for dtype in dtypes),
        )
        self._averages, self._counters = _outside_of_scopes(
            lambda: self._new_variables(start)
        )
        self._functions: dict[tuple[int, ...], Any] = {}

    @property
    def counters(self) -> Counters:
        """The counters, as integers."""
        return Counters(*self._counters.numpy().tolist())

    def start(self, model: Any) -> None:
        """Set the averages to the current weights."""
        del model
        for averages in self._averages:
            _assign(averages, self._samples())

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        arrays = [
            tf.cast(tf.convert_to_tensor(average), _average_dtype(variable))
            for average, variable in zip(
                averages, self._tf_variables, strict=True
            )
        ]
        _assign(self._averages[index], self._packing.pack(arrays))

    def _load_counters(self, counters: Counters) -> None:
        self._counters.assign(counters)

    def update(self, model: Any, time: UpdateTime) -> None:
        """Move the averages towards the current weights, where finite."""
        del model
        key = (id(time.iterations), time.batches_per_step)
        if key not in self._functions:
            self._functions[key] = self._compiled(time)
        # TensorFlow caches a constant for each Python integer.
        steps = numpy.int64(time.steps)
        with self._placed():
            self._functions[key](tf.constant(steps))

    def read(self, index: int = 0) -> list[Any]:
        """Copies of an average, in the order and shapes of the variables."""
        return list(self._reads[index]())

    def copy_to(self, variables: Sequence[Any], model: Any) -> None:
        """Set other variables to the first average, in one call."""
        if self._placement is None or self._device:
            super().copy_to(variables, model)
            return
        key = tuple(map(id, variables))
        if key not in self._functions:
            targets = [variable.value for variable in variables]
            self._functions[key] = self._function(
                lambda: _assign(
                    targets, self._packing.unpack(self._averages[0])
                )
            )
        self._functions[key]()

    def _new_variables(
        self, start: int
    ) -> tuple[list[list[tf.Variable]], tf.Variable]:
        with self._placed():
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
            [tf.cast(v, _average_dtype(v)) for v in self._tf_variables]
        )

    def _compiled(self, time: UpdateTime) -> Any:
        steps = tf.TensorSpec([], tf.int64)

        def sampled(steps: tf.Tensor) -> list[tf.Tensor]:
            return [_now(steps, time), *self._samples()]

        if self._device is None:
            return self._function(
                lambda steps: self._move(*sampled(steps)),
                steps,
                jit_compile=self._placement is not None,
            )
        # XLA cannot read from another device.
        fetch = self._function(sampled, steps)
        move = self._function(
            self._move,
            *(tf.TensorSpec(t.shape, t.dtype) for t in fetch.outputs),
            jit_compile=True,
        )
        return lambda steps: move(*fetch(steps))

    def _function(
        self, function: Callable[..., Any], *signature: Any, **options: Any
    ) -> Any:
        def placed(*arguments: Any) -> Any:
            with self._placed():
                return function(*arguments)

        # Not the `tf.function` itself: its overhead per call is as long as the
        # update of a small model.
        traced = tf.function(placed, autograph=False, **options)
        return _outside_of_scopes(
            lambda: traced.get_concrete_function(*signature)
        )

    def _placed(self) -> Any:
        return (
            tf.device(self._placement)
            if self._placement
            else contextlib.nullcontext()
        )

    def _move(self, now: tf.Tensor, *samples: tf.Tensor) -> None:
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


def _assign(variables: list[tf.Variable], arrays: list[tf.Tensor]) -> None:
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(tf.cast(array, variable.dtype))


def _outside_of_scopes(function: Callable[[], Any]) -> Any:
    """Call a function outside of the scope of any `tf.distribute` strategy.

    Variables that are created in a scope are mirrored. Scopes are thread-local.
    """
    if not tf.distribute.has_strategy():
        return function()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _only_device(variables: list[tf.Variable]) -> str | None:
    # XLA compiles for a single device, not for the replicas of a strategy.
    devices = {variable.device for variable in variables}
    mirrored = isinstance(variables[0], tf.distribute.DistributedValues)
    return devices.pop() if len(devices) == 1 and not mirrored else None


def _now(steps: tf.Tensor, time: UpdateTime) -> tf.Tensor:
    if time.iterations is None:
        return tf.identity(steps)
    batches = tf.cast(time.iterations.value, tf.int64)
    return steps + batches // time.batches_per_step


def _average_dtype(variable: tf.Variable) -> tf.DType:
    return tf.float64 if variable.dtype == tf.float64 else tf.float32
