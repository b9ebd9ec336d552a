"""Counts of optimizer steps in `fit` and in custom training loops."""

from typing import Any

import keras
import models
import numpy
import probe
import pytest
import reference
from models import BATCH, Samples, Steps, compiled, data

from keras_wavg import EMA, SWAG
from keras_wavg.clock import StepClock

needs_several_batches_per_execution = pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="Keras' torch trainer refuses steps_per_execution > 1",
)


def assert_average(ema, samples, **options):
    expected = reference.ema(samples, ema.decay, **options)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def assert_average_of_executions(ema, samples, executions):
    averages = [numpy.zeros(w.shape) for w in samples[0]]
    for weights, steps in zip(samples, executions, strict=True):
        kept = ema.decay**steps
        averages = [
            kept * a + (1 - kept) * w.astype("float64")
            for a, w in zip(averages, weights, strict=True)
        ]
    total = 1 - ema.decay ** sum(executions)
    expected = [a / total for a in averages]
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


def fit(model, *callbacks, batches=10, epochs=2, **options):
    x, y = data(batches)
    options = {"batch_size": BATCH, "verbose": 0} | options
    model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def fit_generator(model, *callbacks, batches):
    """Train on data of unknown length."""
    data = models.generator(batches)
    model.fit(data, verbose=0, callbacks=[*callbacks])


def accumulating(batches):
    return keras.optimizers.SGD(0.05, gradient_accumulation_steps=batches)


def changed(samples):
    """The weights after each batch that changed them."""
    return [
        after
        for before, after in zip(
            [samples.initial, *samples.weights], samples.weights, strict=False
        )
        if not models.equal(before, after)
    ]


def test_the_average_is_updated_once_per_four_accumulated_batches():
    samples, ema = Samples(), EMA(0.9)
    rare = EMA(0.9, every_steps=2, swap=False, name="rare")
    model = compiled(models.dense(), accumulating(4))
    # The optimizer has accumulated three batches when the averages start.
    fit(model, batches=3, epochs=1)
    for batches, epochs, steps in [(9, 1, 3), (12, 1, 6), (10, 3, 13)]:
        fit(model, samples, ema, rare, batches=batches, epochs=epochs)
        assert len(changed(samples)) == steps
        assert_average(ema, changed(samples))
        assert_average(rare, changed(samples), every=2)
    # The two remaining batches are discarded with their optimizer.
    fit(compiled(model, "sgd"), samples, ema, batches=3, epochs=1)
    assert len(changed(samples)) == 16
    assert_average(ema, changed(samples))


@pytest.mark.parametrize("option", ["run_eagerly", "jit_compile"])
def test_accumulated_batches_are_counted_with_each_compile_option(option):
    if option == "jit_compile" and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    steps, ema = Steps(), EMA(0.9)
    model = compiled(models.dense(), accumulating(4), **{option: True})
    fit(model, steps, ema)
    assert len(steps.weights) == 5
    assert_average(ema, steps.weights)


def test_accumulated_batches_of_data_of_unknown_length_are_counted():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), accumulating(4))
    for _ in range(3):
        fit_generator(model, samples, ema, batches=6)
    assert_average(ema, changed(samples))


@needs_several_batches_per_execution
def test_an_execution_of_several_steps_counts_all_of_them():
    """One sample per execution, with the decay of all its steps."""
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), steps_per_execution=4)
    for batches in (9, 10):
        fit(model, samples, ema, batches=batches)
    executions = [4, 4, 1, 4, 4, 1, 4, 4, 2, 4, 4, 2]
    assert_average_of_executions(ema, samples.weights, executions)
    # The length of the last execution is unknown in advance.
    for _ in range(2):
        fit_generator(model, samples, ema, batches=10)
    assert_average_of_executions(
        ema, samples.weights, executions + [4, 4, 2] * 2
    )


@needs_several_batches_per_execution
def test_an_execution_of_accumulated_batches_counts_optimizer_steps():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), accumulating(2), steps_per_execution=4)
    fit(model, samples, ema, batches=8)
    assert_average_of_executions(ema, samples.weights, [2] * 4)


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
        """Lower the loss scale again."""
        self.model.optimizer.dynamic_scale.assign(2.0**4)


class Interrupting(keras.callbacks.Callback):
    """Interrupts training after a batch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raise what Ctrl-C raises."""
        raise KeyboardInterrupt


def loss_scaled(**options):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, **options), initial_scale=2.0**4
    )
    keras.config.set_dtype_policy("mixed_float16")
    model = models.dense()
    keras.config.set_dtype_policy("float32")
    return compiled(model, optimizer)


@pytest.fixture(scope="module")
def scaled():
    """A model with a built optimizer, so that the loss scale can be set."""
    model = loss_scaled()
    fit(model, batches=1, epochs=1)
    return model


def test_steps_that_loss_scaling_skips_are_not_counted(scaled):
    samples, ema = Samples(), EMA(0.9)
    sparse = EMA(0.9, every_steps=3, swap=False, name="sparse")
    before = scaled.get_weights()
    fit(scaled, Overflowing({0, 1, 5, 11}), samples, ema, sparse)
    assert models.equal(samples.weights[1], before)
    taken = [w for i, w in enumerate(samples.weights) if i not in {0, 1, 5, 11}]
    assert_average(ema, taken)
    ticks = [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    executions = [sum(ticks[i : i + 3]) for i in range(0, 18, 3)]
    assert_average_of_executions(sparse, samples.weights[2:18:3], executions)


def test_loss_scaling_with_accumulation_counts_optimizer_steps():
    model, ema = loss_scaled(gradient_accumulation_steps=4), EMA(0.9)
    steps = Steps()
    fit(model, steps, ema, batches=12, epochs=2)
    assert len(steps.weights) == 6
    assert_average(ema, steps.weights)


def test_a_fit_whose_steps_are_all_skipped_warns_and_has_no_average(
    scaled, tmp_path
):
    averages = [EMA(0.9), SWAG(rank=2, swap=False)]
    with pytest.warns(UserWarning, match="made no average"):
        fit(scaled, Overflowing(set(range(20))), *averages)
    scaled.save_weights(tmp_path / "a.weights.h5")
    scaled.load_weights(tmp_path / "a.weights.h5")
    assert [probe.counts(average).averaged for average in averages] == [0, 0]


def test_a_custom_training_loop_after_fit_counts_each_step_once(scaled):
    """With loss scaling only `fit` reads the optimizer's counter."""
    samples, ema = Samples(), EMA(0.9)
    fit(scaled, samples, ema, epochs=1)
    train_in_a_custom_loop(scaled, samples, ema)
    assert_average(ema, samples.weights)
    with pytest.raises(KeyboardInterrupt):
        fit(scaled, ema, Interrupting(), epochs=1)
    samples.weights.append(scaled.get_weights())
    ema.restore()
    # Without optimizer steps, so that only `update` counts.
    for n in range(4):
        scaled.set_weights([w + n for w in scaled.get_weights()])
        samples.weights.append(scaled.get_weights())
        ema.update()
    assert_average(ema, samples.weights)


def train_in_a_custom_loop(model, samples, ema):
    x, y = data(10)
    ema.restore()
    for start in range(0, len(x), BATCH):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        samples.weights.append(model.get_weights())
        ema.update()


class CustomTrainStep(keras.Model):
    """A model whose `train_step` does not use the compiled optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1)
        self.build((None, 4))

    def build(self, input_shape: Any) -> None:
        """Build the layer."""
        self.layer.build(input_shape)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Call the layer."""
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


CustomTrainStep.train_step = (
    _jax_step if keras.config.backend() == "jax" else _other_step
)


def test_steps_are_counted_if_train_step_does_not_use_the_optimizer():
    samples, ema = Samples(), EMA(0.9)
    fit(compiled(CustomTrainStep()), samples, ema)
    assert len(samples.weights) == 20
    assert_average(ema, samples.weights)


def test_an_unused_optimizer_with_loss_scaling_is_detected():
    """Keras wraps all optimizers so under the policy mixed_float16."""
    samples, ema = Samples(), EMA(0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    fit(compiled(CustomTrainStep(), optimizer), samples, ema)
    assert probe.counts(ema).averaged == 20
    assert_average(ema, samples.weights)


@needs_several_batches_per_execution
def test_an_unused_optimizer_is_detected_if_executions_may_be_short():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(CustomTrainStep(), steps_per_execution=2)
    for _ in range(2):
        fit_generator(model, samples, ema, batches=8)
    assert_average_of_executions(ema, samples.weights, [2] * 8)


def test_the_clock_counts_the_steps_of_a_custom_training_loop():
    clock = StepClock()
    for _ in range(3):
        clock.tick()
    assert clock.now == clock.update_time().steps == 3
