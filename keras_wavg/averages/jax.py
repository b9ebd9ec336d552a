"""Averages on JAX: one jitted call an update, to which the old are donated."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy

from keras_wavg.averages.counting import Counters, advance, moved_towards
from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import Packing
from keras_wavg.backend import attach_weights, own_part
from keras_wavg.backend.jax_shards import spans_processes
from keras_wavg.clock import Reading
from keras_wavg.keras_private import pending_state
from keras_wavg.schedules import Schedule


@final
class Averages(DeviceAverages):
    """Float32 averages of variables, on their devices, sharded as they are.

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
        self._variables = list(variables)
        self._host = jax.local_devices(backend=device)[0] if device else None
        self._counters = self._moved(
            Counters(*(jnp.int32(n) for n in (start, 0)))
        )
        self._arrays: list[list[jax.Array]] = []
        self._places: dict[int, tuple[str, int]] = {}

    @property
    def counters(self) -> Counters:
        """The counts, as integers. Waits for the device."""
        return Counters(*map(int, self._counters))

    def bind(self, model: Any) -> None:
        """Learn where the trainer keeps each variable during an epoch."""
        kinds = ["trainable_variables", "non_trainable_variables"]
        lists = {kind: getattr(model, kind) for kind in kinds}
        optimizer = getattr(model, "optimizer", None)
        lists["optimizer_variables"] = getattr(optimizer, "variables", [])
        self._places = {
            id(variable): (kind, index)
            for kind, variables in lists.items()
            for index, variable in enumerate(variables)
        }

    def begin(self, model: Any) -> None:
        """Let the averages be the weights of now."""
        self._begin_at(self._current(model, self._variables))

    def _begin_at(self, weights: list[jax.Array]) -> None:
        self._compile(weights)
        # A large array comes out of `pack` as it went in, and the model's own
        # arrays are donated to its next step.
        self._arrays = [
            [
                jnp.array(array, _average_dtype(array), copy=True)
                for array in self._packing.pack(weights)
            ]
            for _ in self._schedules
        ]

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        weights = [self._moved(variable.value) for variable in self._variables]
        if not index:
            # They may lie elsewhere than those that were here before.
            self._begin_at(weights)
        self._arrays[index] = [
            jnp.array(array, copy=True)
            for array in self._packing.pack(
                [
                    _placed_like(weight, average)
                    for weight, average in zip(weights, averages, strict=True)
                ]
            )
        ]

    def _load_counters(self, counters: Counters) -> None:
        self._counters = self._moved(Counters(*map(jnp.int32, counters)))

    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, where finite."""
        clock = [] if reading.iterations is None else [reading.iterations]
        weights = self._current(model, [*self._variables, *clock])
        iterations = weights.pop() if clock else None
        if not self._arrays:
            self._begin_at(weights)
        self._arrays, self._counters = self._update(
            self._arrays,
            self._counters,
            weights,
            reading.steps,
            iterations,
            reading.batches_per_step,
        )

    def read(self, index: int = 0) -> list[Any]:
        """An average in the order and shapes of the variables, as copies."""
        averages = _compiled_read(self._packing)(self._arrays[index])
        return averages if self._host is None else jax.device_get(averages)

    def _compile(self, weights: list[jax.Array]) -> None:
        self._packing = Packing(
            tuple(w.shape for w in weights),
            tuple(
                len(w.devices()) == 1 and _average_dtype(w) == jnp.float32
                for w in weights
            ),
        )
        self._update = _compiled_update(self._schedules, self._packing)

    def _current(self, model: Any, variables: list[Any]) -> list[jax.Array]:
        state = pending_state(model)
        try:
            places = [self._places[id(v)] for v in variables]
            arrays = [state[kind][index] for kind, index in places]
        except (KeyError, IndexError, TypeError):
            attach_weights(model)
            arrays = [variable.value for variable in variables]
        return self._moved(arrays)

    def _moved(self, arrays: Any) -> Any:
        # From one platform to another JAX goes through the host, which waits
        # for the step that makes the arrays.
        if self._host is None:
            return arrays
        return jax.device_put(jax.tree.map(own_part, arrays), self._host)


@functools.lru_cache
def _compiled_update(
    schedules: tuple[Schedule, ...], packing: Packing
) -> Callable[..., Any]:
    @functools.partial(jax.jit, donate_argnums=(0, 1), static_argnums=5)
    def update(
        averages: list[list[jax.Array]],
        counters: Counters,
        weights: list[jax.Array],
        steps: int,
        iterations: jax.Array | None,
        batches_per_step: int,
    ) -> tuple[list[list[jax.Array]], Counters]:
        samples = packing.pack([w.astype(_average_dtype(w)) for w in weights])
        now = steps
        if iterations is not None:
            now = steps + iterations // batches_per_step
        counters, coefficients = advance(counters, now, schedules)
        averages = [
            [
                moved_towards(average, sample, coefficient)
                for average, sample in zip(arrays, samples, strict=True)
            ]
            for arrays, coefficient in zip(averages, coefficients, strict=True)
        ]
        return averages, counters

    return update


@functools.lru_cache
def _compiled_read(packing: Packing) -> Callable[..., Any]:
    return jax.jit(
        lambda averages: [jnp.copy(a) for a in packing.unpack(averages)]
    )


def _placed_like(weight: jax.Array, average: Any) -> jax.Array:
    if not spans_processes(weight):
        average = own_part(average)
    # An array that is bound to a device would have Keras compile its step anew
    # once it is in the model.
    if weight.committed:
        placed = jax.device_put(average, weight.sharding)
    else:
        placed = jnp.asarray(numpy.asarray(average))
    return placed.astype(_average_dtype(weight))


def _average_dtype(array: jax.Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
