"""Averages on JAX: one jitted call per update, with donated averages."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy

from keras_wavg.averages.device import DeviceAverages
from keras_wavg.averages.packing import Packing
from keras_wavg.averages.update_rule import Counters, advance, moved_towards
from keras_wavg.backend import local_part, sync_weights
from keras_wavg.backend.jax_shards import spans_processes
from keras_wavg.clock import UpdateTime
from keras_wavg.keras_private import pending_state
from keras_wavg.schedules import Schedule


@final
class Averages(DeviceAverages):
    """Averages of variables on their devices, with the same sharding."""

    def _allocate(self, start: int) -> None:
        device = self._device
        self._host = jax.local_devices(backend=device)[0] if device else None
        self._counters = self._to_device(
            Counters(*(jnp.int32(n) for n in (start, 0)))
        )
        self._arrays: list[list[jax.Array]] = []
        self._locations: dict[int, tuple[str, int]] = {}

    @property
    def counters(self) -> Counters:
        """The counters, as integers. Waits for the device."""
        return Counters(*map(int, self._counters))

    def locate_weights(self, model: Any) -> None:
        """Look up where the trainer keeps each variable during an epoch."""
        kinds = ["trainable_variables", "non_trainable_variables"]
        lists = {kind: getattr(model, kind) for kind in kinds}
        optimizer = getattr(model, "optimizer", None)
        lists["optimizer_variables"] = getattr(optimizer, "variables", [])
        self._locations = {
            id(variable): (kind, index)
            for kind, variables in lists.items()
            for index, variable in enumerate(variables)
        }

    def start(self, model: Any) -> None:
        """Set the averages to the current weights."""
        self._start_from(self._current_arrays(model, self._variables))

    def _start_from(self, weights: list[jax.Array]) -> None:
        self._compile(weights)
        # `pack` does not copy large arrays, and the model donates its arrays
        # to its next step.
        self._arrays = [
            [
                jnp.array(array, _average_dtype(array), copy=True)
                for array in self._packing.pack(weights)
            ]
            for _ in self._schedules
        ]

    def _load(self, index: int, averages: Sequence[Any]) -> None:
        weights = [
            self._to_device(variable.value) for variable in self._variables
        ]
        if not self._arrays or self._packing != _packing_of(weights):
            self._start_from(weights)
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
        self._counters = self._to_device(Counters(*map(jnp.int32, counters)))

    def update(self, model: Any, time: UpdateTime) -> None:
        """Move the averages towards the current weights, where finite."""
        iteration = [] if time.iterations is None else [time.iterations]
        weights = self._current_arrays(model, [*self._variables, *iteration])
        iterations = weights.pop() if iteration else None
        if not self._arrays:
            self._start_from(weights)
        self._arrays, self._counters = self._update(
            self._arrays,
            self._counters,
            weights,
            time.steps,
            iterations,
            time.batches_per_step,
        )

    def read(self, index: int = 0) -> list[Any]:
        """Copies of an average, in the order and shapes of the variables."""
        averages = _compiled_read(self._packing)(self._arrays[index])
        return averages if self._host is None else jax.device_get(averages)

    def _compile(self, weights: list[jax.Array]) -> None:
        self._packing = _packing_of(weights)
        self._update = _compiled_update(self._schedules, self._packing)

    def _current_arrays(
        self, model: Any, variables: list[Any]
    ) -> list[jax.Array]:
        state = pending_state(model)
        try:
            locations = [self._locations[id(v)] for v in variables]
            arrays = [state[kind][index] for kind, index in locations]
        except (KeyError, IndexError, TypeError):
            sync_weights(model)
            arrays = [variable.value for variable in variables]
        return self._to_device(arrays)

    def _to_device(self, arrays: Any) -> Any:
        # Between platforms JAX copies through the host, which waits for the
        # step that computes the arrays.
        if self._host is None:
            return arrays
        return jax.device_put(jax.tree.map(local_part, arrays), self._host)


def _packing_of(weights: list[jax.Array]) -> Packing:
    return Packing(
        tuple(w.shape for w in weights),
        tuple(
            len(w.devices()) == 1 and _average_dtype(w) == jnp.float32
            for w in weights
        ),
    )


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
    return jax.jit(lambda packed: [jnp.copy(a) for a in packing.unpack(packed)])


def _placed_like(weight: jax.Array, average: Any) -> jax.Array:
    if not spans_processes(weight):
        average = local_part(average)
    # A committed array would make Keras recompile its step once it is swapped
    # in.
    if weight.committed:
        placed = jax.device_put(average, weight.sharding)
    else:
        placed = jnp.asarray(numpy.asarray(average))
    return placed.astype(_average_dtype(weight))


def _average_dtype(array: jax.Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
