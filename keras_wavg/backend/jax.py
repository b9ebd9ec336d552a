"""Averages on JAX: one jitted call an update, to which the old are donated."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy

from keras_wavg.backend import attach_weights
from keras_wavg.backend.counting import Counters, advance
from keras_wavg.backend.packing import Packing
from keras_wavg.clock import Reading
from keras_wavg.schedules import Schedule


class Averages:
    """Float32 averages of variables, on their devices, sharded as they are.

    Args:
        variables: Keras variables of floating type.
        schedule: A `Schedule`.
        start: Integer, the optimizer step from which samples count.
        device: `None` or `"cpu"`, see `keras_wavg.backend`.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        schedule: Schedule,
        start: int,
        device: str | None = None,
    ) -> None:
        self._variables = list(variables)
        self._schedule = schedule
        self._host = jax.local_devices(backend=device)[0] if device else None
        self._counters = self._moved(
            Counters(*(jnp.int32(n) for n in (start, 0, 0)))
        )
        self._arrays: list[jax.Array] = []
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
        weights = self._current(model, self._variables)
        self._compile(weights)
        # A large array comes out of `pack` as it went in, and the model's own
        # arrays are donated to its next step.
        self._arrays = [
            jnp.array(array, _average_dtype(array), copy=True)
            for array in self._packing.pack(weights)
        ]

    def load(self, averages: Sequence[Any], counters: Counters) -> None:
        """Let the averages and counts be these, copied."""
        weights = [self._moved(variable.value) for variable in self._variables]
        self._compile(weights)
        self._arrays = [
            jnp.array(array, copy=True)
            for array in self._packing.pack(
                [
                    _placed_like(weight, average)
                    for weight, average in zip(weights, averages, strict=True)
                ]
            )
        ]
        self._counters = self._moved(Counters(*map(jnp.int32, counters)))

    def update(self, model: Any, reading: Reading) -> None:
        """Move the averages towards the weights of now, if all are finite."""
        clock = [] if reading.iterations is None else [reading.iterations]
        weights = self._current(model, [*self._variables, *clock])
        iterations = weights.pop() if clock else None
        if not self._arrays:
            self._begin_at_zero(weights)
        self._arrays, self._counters = self._update(
            self._arrays,
            self._counters,
            weights,
            reading.steps,
            iterations,
            reading.batches_per_step,
        )

    def read(self) -> list[jax.Array]:
        """The averages in the order and shapes of the variables, as copies."""
        averages = _compiled_read(self._packing)(self._arrays)
        return averages if self._host is None else jax.device_get(averages)

    def are_in_model(self) -> bool:
        """Whether the variables are the averages, each in its own dtype."""
        weights = self._moved([v.value for v in self._variables])
        return bool(_compiled_comparison(self._packing)(self._arrays, weights))

    def snapshot(self) -> list[jax.Array]:
        """The values of the variables, safe from what happens to them next."""
        weights = [variable.value for variable in self._variables]
        # Arrays do not change, and only arrays in the model are donated.
        return weights if self._host is None else _host_copies(weights)

    def _begin_at_zero(self, weights: list[jax.Array]) -> None:
        self._compile(weights)
        self._arrays = [
            jnp.zeros_like(array, _average_dtype(array))
            for array in self._packing.pack(weights)
        ]

    def _compile(self, weights: list[jax.Array]) -> None:
        self._packing = Packing(
            tuple(w.shape for w in weights),
            tuple(
                len(w.devices()) == 1 and _average_dtype(w) == jnp.float32
                for w in weights
            ),
        )
        self._update = _compiled_update(self._schedule, self._packing)

    def _current(self, model: Any, variables: list[Any]) -> list[jax.Array]:
        state = _pending_state(model)
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
        return jax.device_put(arrays, self._host)


def _pending_state(model: Any) -> dict[str, Any]:
    # During an epoch the newest weights are here and nowhere else. The public
    # way, `Callback.model`, writes all of them and the optimizer's back into
    # their variables, and the next step takes them all out again: four times
    # the cost of an update. Private to Keras, so anything unexpected here
    # sends `_current` the public way.
    if getattr(model, "_jax_state_synced", True):
        return {}
    return getattr(model, "_jax_state", None) or {}


@functools.lru_cache
def _compiled_update(
    schedule: Schedule, packing: Packing
) -> Callable[..., Any]:
    @functools.partial(jax.jit, donate_argnums=(0, 1), static_argnums=5)
    def update(
        averages: list[jax.Array],
        counters: Counters,
        weights: list[jax.Array],
        steps: int,
        iterations: jax.Array | None,
        batches_per_step: int,
    ) -> tuple[list[jax.Array], Counters]:
        samples = packing.pack([w.astype(_average_dtype(w)) for w in weights])
        now = steps
        if iterations is not None:
            now = steps + iterations // batches_per_step
        counters, coefficient, take = advance(
            counters, now, _all_finite(samples), schedule
        )
        # Not `where`: XLA would compute `take` anew for every element.
        averages = jax.lax.cond(
            take,
            lambda: [
                average + coefficient * (sample - average)
                for average, sample in zip(averages, samples, strict=True)
            ],
            lambda: averages,
        )
        return averages, counters

    return update


@functools.lru_cache
def _compiled_read(packing: Packing) -> Callable[..., Any]:
    return jax.jit(
        lambda averages: [jnp.copy(a) for a in packing.unpack(averages)]
    )


@functools.lru_cache
def _compiled_comparison(packing: Packing) -> Callable[..., Any]:
    @jax.jit
    def compare(averages: list[jax.Array], weights: list[jax.Array]) -> Any:
        same = [
            jnp.all(average.astype(weight.dtype) == weight)
            for average, weight in zip(
                packing.unpack(averages), weights, strict=True
            )
        ]
        return jnp.all(jnp.stack(same))

    return compare


def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    # A sum is finite only if each of its terms is.
    return jnp.isfinite(jnp.sum(jnp.stack([jnp.sum(a) for a in arrays])))


def _placed_like(weight: jax.Array, average: Any) -> jax.Array:
    # An array that is bound to a device would have Keras compile its step anew
    # once it is in the model.
    if weight.committed:
        placed = jax.device_put(average, weight.sharding)
    else:
        placed = jnp.asarray(numpy.asarray(average))
    return placed.astype(_average_dtype(weight))


def _host_copies(arrays: list[jax.Array]) -> list[numpy.ndarray]:
    return [numpy.array(array) for array in jax.device_get(arrays)]


def _average_dtype(array: jax.Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)
