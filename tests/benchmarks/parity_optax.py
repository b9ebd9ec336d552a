"""Checks of optax: `incremental_update`, and `ema` with bias correction."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy
import optax
from parity_library import (
    DECAY,
    Library,
    change,
    count_updates,
    error,
    faint,
    walk,
)


class Optax(Library):
    """Functions of arrays; the caller keeps weights and averages."""

    def follow(self, samples, decay=DECAY, *, corrected=False, dtype="float32"):
        samples = jnp.asarray(samples)
        if corrected:
            return debiased(samples[1:], decay)
        # A float32 average makes the whole sum float32.
        average = samples[0].astype("float32")
        step = jax.jit(optax.incremental_update)
        for sample in samples[1:].astype(dtype):
            average = step(sample, average, 1 - decay)
        return numpy.asarray(average, "float64")

    def raw_weights_after_evaluate(self):
        raw, average = jnp.asarray(faint()[-1]), self.follow(faint())
        predict(average, jnp.ones((4, 3)))
        return change(raw, faint()[-1])

    raw_weights_after_predict = raw_weights_after_evaluate
    raw_weights_after_fit = raw_weights_after_evaluate

    def raw_weights_after_an_exception(self):
        raw, average = jnp.asarray(faint()[-1]), self.follow(faint())
        with contextlib.suppress(TypeError):
            predict(average, jnp.ones((4, 99)))
        return change(raw, faint()[-1])

    def updates_with_accumulation(self):
        optimizer = optax.MultiSteps(optax.sgd(0.05), 4)
        weights = average = jnp.ones(3)
        state, seen = optimizer.init(weights), []
        gradient = jax.grad(lambda w: (predict(w, jnp.ones((4, 3))) ** 2).sum())
        for _ in range(16):
            updates, state = optimizer.update(gradient(weights), state, weights)
            weights = optax.apply_updates(weights, updates)
            if optimizer.has_updated(state):
                average = optax.incremental_update(weights, average, 0.1)
            seen.append(average)
        return count_updates(seen[7:])

    def resume(self):
        file = io.BytesIO()
        numpy.save(file, self.follow(walk(20)).astype("float32"))
        file.seek(0)
        rest = walk(40)[20:].copy()
        rest[0] = numpy.load(file)
        return change(self.follow(rest), self.follow(walk(40)))

    def several_averages(self):
        samples = walk(50)
        return max(
            error(self.follow(samples, decay), samples, decay, self.starts)
            for decay in (0.9, 0.99)
        )


def debiased(samples, decay):
    """Average weights with `optax.ema`, which is made for updates."""
    transform = optax.ema(decay, debias=True)
    state, update = transform.init(samples[0]), jax.jit(transform.update)
    for sample in samples:
        average, state = update(sample, state)
    return numpy.asarray(average, "float64")


def predict(weights, x):
    """Multiply inputs by one weight each."""
    return x @ jnp.asarray(weights)
