"""Alternatives for updating an average, each as a function to be timed."""

from collections.abc import Callable
from typing import Any

import keras


def flat_lerp(size: int, decay: float) -> Callable[[], Any]:
    """Return `average += (1 - decay) * (weights - average)` on a flat array.

    This is the least that any update has to do. It does not check its input.
    """
    makers = {"jax": _flat_jax, "tensorflow": _flat_tf, "torch": _flat_torch}
    return makers[keras.config.backend()](size, decay)


def peer_update(
    weights: list[Any], decay: float
) -> dict[str, Callable[[], Any]]:
    """Return the updates that the backend provides, on the same weights."""
    makers = {"jax": _optax, "tensorflow": _tf_ema, "torch": _swa_utils}
    return makers[keras.config.backend()](weights, decay)


def _flat_jax(size: int, decay: float) -> Callable[[], Any]:
    import functools

    import jax
    import jax.numpy as jnp

    @functools.partial(jax.jit, donate_argnums=0)
    def lerp(average: Any, weights: Any) -> Any:
        return average + (1 - decay) * (weights - average)

    weights = jax.random.normal(jax.random.key(0), (size,))
    state = [jnp.zeros(size)]

    def run() -> None:
        state[0] = lerp(state[0], weights)
        state[0].block_until_ready()

    return run


def _optax(weights: list[Any], decay: float) -> dict[str, Callable[[], Any]]:
    import functools

    import jax
    import jax.numpy as jnp
    import optax

    state = [[jnp.zeros_like(w) for w in weights]]
    update = functools.partial(jax.jit, donate_argnums=1)(
        lambda new, old: optax.incremental_update(new, old, 1 - decay)
    )

    def run() -> None:
        state[0] = jax.block_until_ready(update(weights, state[0]))

    return {"optax.incremental_update": run}


def _flat_tf(size: int, decay: float) -> Callable[[], Any]:
    import tensorflow as tf

    average = tf.Variable(tf.zeros(size))
    weights = tf.Variable(tf.random.normal((size,)))

    @tf.function(jit_compile=True)
    def lerp() -> None:
        average.assign_add((1 - decay) * (weights - average))

    return lerp


def _tf_ema(weights: list[Any], decay: float) -> dict[str, Callable[[], Any]]:
    import tensorflow as tf

    ema = tf.train.ExponentialMovingAverage(decay)
    ema.apply(weights)

    @tf.function
    def run() -> None:
        ema.apply(weights)

    return {"tf.train.ExponentialM.A.": run}


def _flat_torch(size: int, decay: float) -> Callable[[], Any]:
    import torch

    average, weights = torch.zeros(size), torch.randn(size)
    return lambda: average.lerp_(weights, 1 - decay)


def _swa_utils(
    weights: list[Any], decay: float
) -> dict[str, Callable[[], Any]]:
    import torch
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    weights = [w.detach() for w in weights]
    averages = [torch.zeros_like(w) for w in weights]
    move = get_ema_multi_avg_fn(decay)
    return {"torch.optim.swa_utils": lambda: move(averages, weights, 1)}
