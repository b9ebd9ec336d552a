"""Optimizer steps are counted as what they are, through `model.fit`."""

from typing import Any

import keras
import models
import numpy
import pytest
import reference
from models import BATCH, Samples, Steps, compiled, data

from keras_wavg import EMA
from keras_wavg.clock import StepClock

needs_groups = pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="Keras' torch trainer refuses steps_per_execution > 1",
)


def assert_average(ema, samples, **options):
    expected = reference.ema(samples, ema.decay, **options)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def fit(model, *callbacks, batches=10, epochs=2, **options):
    x, y = data(batches)
    options = {"batch_size": BATCH, "verbose": 0} | options
    model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


@pytest.mark.parametrize("batches", [12, 10])
def test_the_average_moves_once_in_four_accumulated_batches(batches):
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    steps, ema = Steps(), EMA(0.9)
    fit(
        compiled(models.dense(), optimizer),
        steps,
        ema,
        batches=batches,
        epochs=4,
    )
    assert len(steps.weights) == batches
    assert_average(ema, steps.weights)


def test_accumulation_of_an_optimizer_that_has_trained_before_is_in_phase():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    model = compiled(models.dense(), optimizer)
    fit(model, batches=3, epochs=1)
    samples, ema = Samples(), EMA(0.9)
    fit(model, samples, ema, batches=8, epochs=1)
    assert_average(ema, [samples.weights[0], samples.weights[4]])


@needs_groups
@pytest.mark.parametrize("batches", [9, 10])
def test_a_group_of_steps_counts_as_the_steps_it_had(batches):
    """One sample a group, and the decay of all of its steps."""
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), steps_per_execution=4)
    fit(model, samples, ema, batches=batches, epochs=3)
    last = batches % 4
    assert_average_of_groups(ema, samples.weights, [4, 4, last] * 3)


@needs_groups
def test_a_group_of_unknown_length_counts_as_the_steps_it_had():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), steps_per_execution=4)
    for _ in range(3):
        model.fit(models.generator(10), verbose=0, callbacks=[samples, ema])
    assert_average_of_groups(ema, samples.weights, [4, 4, 2] * 3)


@needs_groups
def test_groups_of_accumulated_batches_count_optimizer_steps():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), optimizer, steps_per_execution=4)
    fit(model, samples, ema, batches=8, epochs=2)
    assert_average_of_groups(ema, samples.weights, [2] * 4)


def assert_average_of_groups(ema, samples, groups):
    averages = [numpy.zeros(w.shape) for w in samples[0]]
    for weights, steps in zip(samples, groups, strict=True):
        kept = ema.decay**steps
        averages = [
            kept * a + (1 - kept) * w.astype("float64")
            for a, w in zip(averages, weights, strict=True)
        ]
    total = 1 - ema.decay ** sum(groups)
    expected = [a / total for a in averages]
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def test_data_of_unknown_length_is_counted_batch_by_batch():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense())
    for batches in (7, 3, 5):
        model.fit(
            models.generator(batches), verbose=0, callbacks=[samples, ema]
        )
    assert len(samples.weights) == 15
    assert_average(ema, samples.weights)


def test_accumulation_over_data_of_unknown_length_follows_the_optimizer():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), optimizer)
    for _ in range(3):
        model.fit(models.generator(6), verbose=0, callbacks=[samples, ema])
    # Where the weights moved, the optimizer made a step.
    moved = [
        after
        for before, after in zip(
            [samples.initial, *samples.weights], samples.weights, strict=False
        )
        if not models.equal(before, after)
    ]
    assert_average(ema, moved)


class Overflowing(keras.callbacks.Callback):
    """Makes the gradients of some batches overflow in float16."""

    def __init__(self, batches: set[int]) -> None:
        super().__init__()
        self.batches = batches
        self.count = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Raise the loss scale beyond what float16 can hold."""
        if self.count in self.batches:
            self.model.optimizer.dynamic_scale.assign(2.0**60)
        self.count += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Lower it again."""
        self.model.optimizer.dynamic_scale.assign(2.0**4)


def loss_scaled(**options):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, **options), initial_scale=2.0**4
    )
    keras.config.set_dtype_policy("mixed_float16")
    return compiled(models.dense(), optimizer)


@pytest.mark.parametrize("every", [1, 3])
def test_steps_that_loss_scaling_skips_are_no_steps(every):
    model = loss_scaled()
    fit(model, batches=1, epochs=1)
    samples, ema = Samples(), EMA(0.9, every=every)
    before = model.get_weights()
    fit(model, Overflowing({0, 1, 5, 11}), samples, ema)
    assert models.equal(samples.weights[1], before)
    if every == 1:
        taken = [
            w for i, w in enumerate(samples.weights) if i not in {0, 1, 5, 11}
        ]
        assert_average(ema, taken)
    else:
        ticks = [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
        groups = [sum(ticks[i : i + 3]) for i in range(0, 18, 3)]
        assert_average_of_groups(ema, samples.weights[2:18:3], groups)


def test_batches_left_over_by_accumulation_do_not_count_after_a_recompile():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    model, ema = compiled(models.dense(), optimizer), EMA(0.9)
    steps, samples = Steps(), Samples()
    fit(model, steps, ema, batches=7, epochs=1)
    fit(compiled(model, "sgd"), samples, ema, batches=3, epochs=1)
    assert_average(ema, steps.weights + samples.weights)


def test_loss_scaling_with_accumulation_counts_optimizer_steps():
    model, ema = loss_scaled(gradient_accumulation_steps=4), EMA(0.9)
    steps = Steps()
    fit(model, steps, ema, batches=12, epochs=2)
    assert len(steps.weights) == 6
    assert_average(ema, steps.weights)


def test_no_step_at_all_makes_no_average_and_says_so():
    model = loss_scaled()
    fit(model, batches=1, epochs=1)
    ema = EMA(0.9)
    with pytest.warns(UserWarning, match="made no average"):
        fit(model, Overflowing(set(range(40))), ema)


class TwoOptimizers(keras.Model):
    """A custom `train_step` that leaves the compiled optimizer idle."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1)
        self.build((None, 4))

    def build(self, input_shape: Any) -> None:
        """Build the layer."""
        self.layer.build(input_shape)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Predict."""
        return self.layer(inputs)


def _jax_step(self, state, data):
    trainable, non_trainable, optimizer, metrics = state
    trainable = [v * 0.9 + 0.1 for v in trainable]
    return {"loss": trainable[0].sum()}, (
        trainable,
        non_trainable,
        optimizer,
        metrics,
    )


def _other_step(self, data):
    for variable in self.trainable_variables:
        variable.assign(variable * 0.9 + 0.1)
    return {"loss": keras.ops.sum(self.trainable_variables[0])}


TwoOptimizers.train_step = (
    _jax_step if keras.config.backend() == "jax" else _other_step
)


def test_a_custom_train_step_with_an_idle_optimizer_is_counted():
    samples, ema = Samples(), EMA(0.9)
    fit(compiled(TwoOptimizers()), samples, ema)
    assert len(samples.weights) == 20
    assert_average(ema, samples.weights)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_loop_after_fit_counts_each_of_its_steps_once(interrupted):
    """With loss scaling the optimizer's count decides, but in `fit` only."""
    model, samples, ema = loss_scaled(), Samples(), EMA(0.9)
    x, y = data(10)
    fit(model, samples, ema, epochs=1)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fit(model, ema, Interrupting(), epochs=1)
        samples.weights.append(model.get_weights())
    ema.restore()
    for start in range(0, len(x), BATCH):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        samples.weights.append(model.get_weights())
        ema.update()
    assert_average(ema, samples.weights)


class Interrupting(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def test_the_clock_counts_the_steps_of_a_loop():
    clock = StepClock()
    for _ in range(3):
        clock.tick()
    assert clock.now == clock.reading().steps == 3
