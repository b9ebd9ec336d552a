"""Optimizer steps are counted as what they are, through `model.fit`."""

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

needs_groups = pytest.mark.skipif(
    keras.config.backend() == "torch",
    reason="Keras' torch trainer refuses steps_per_execution > 1",
)


def assert_average(ema, samples, **options):
    expected = reference.ema(samples, ema.decay, **options)
    assert reference.relative_error(ema.get_weights(), expected) < 1e-6


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


def fit(model, *callbacks, batches=10, epochs=2, **options):
    x, y = data(batches)
    options = {"batch_size": BATCH, "verbose": 0} | options
    model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


def fit_generator(model, *callbacks, batches):
    """Of a length that Keras does not know."""
    data = models.generator(batches)
    model.fit(data, verbose=0, callbacks=[*callbacks])


def accumulating(batches):
    return keras.optimizers.SGD(0.05, gradient_accumulation_steps=batches)


def moved(samples):
    """The weights where they moved: there the optimizer made a step."""
    return [
        after
        for before, after in zip(
            [samples.initial, *samples.weights], samples.weights, strict=False
        )
        if not models.equal(before, after)
    ]


def test_the_average_moves_once_in_four_accumulated_batches():
    samples, ema = Samples(), EMA(0.9)
    rare = EMA(0.9, every=2, swap=False, name="rare")
    model = compiled(models.dense(), accumulating(4))
    # The optimizer is at the fourth batch of a step when the averages begin.
    fit(model, batches=3, epochs=1)
    for batches, epochs, steps in [(9, 1, 3), (12, 1, 6), (10, 3, 13)]:
        fit(model, samples, ema, rare, batches=batches, epochs=epochs)
        assert len(moved(samples)) == steps
        assert_average(ema, moved(samples))
        assert_average(rare, moved(samples), every=2)
    # The two batches that are left over count for nothing now.
    fit(compiled(model, "sgd"), samples, ema, batches=3, epochs=1)
    assert len(moved(samples)) == 16
    assert_average(ema, moved(samples))


@pytest.mark.parametrize("option", ["run_eagerly", "jit_compile"])
def test_accumulated_batches_are_counted_however_the_step_is_compiled(option):
    if option == "jit_compile" and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    steps, ema = Steps(), EMA(0.9)
    model = compiled(models.dense(), accumulating(4), **{option: True})
    fit(model, steps, ema)
    assert len(steps.weights) == 5
    assert_average(ema, steps.weights)


def test_accumulation_over_data_of_unknown_length_follows_the_optimizer():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), accumulating(4))
    for _ in range(3):
        fit_generator(model, samples, ema, batches=6)
    assert_average(ema, moved(samples))


@needs_groups
def test_a_group_of_steps_counts_as_the_steps_it_had():
    """One sample a group, and the decay of all of its steps."""
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), steps_per_execution=4)
    for batches in (9, 10):
        fit(model, samples, ema, batches=batches)
    groups = [4, 4, 1, 4, 4, 1, 4, 4, 2, 4, 4, 2]
    assert_average_of_groups(ema, samples.weights, groups)
    # The last group of an epoch may be shorter than anybody knows.
    for _ in range(2):
        fit_generator(model, samples, ema, batches=10)
    assert_average_of_groups(ema, samples.weights, groups + [4, 4, 2] * 2)


@needs_groups
def test_groups_of_accumulated_batches_count_optimizer_steps():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(models.dense(), accumulating(2), steps_per_execution=4)
    fit(model, samples, ema, batches=8)
    assert_average_of_groups(ema, samples.weights, [2] * 4)


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
    """A model whose optimizer has been built, so that its scale can be set."""
    model = loss_scaled()
    fit(model, batches=1, epochs=1)
    return model


def test_steps_that_loss_scaling_skips_are_no_steps(scaled):
    samples, ema = Samples(), EMA(0.9)
    sparse = EMA(0.9, every=3, swap=False, name="sparse")
    before = scaled.get_weights()
    fit(scaled, Overflowing({0, 1, 5, 11}), samples, ema, sparse)
    assert models.equal(samples.weights[1], before)
    taken = [w for i, w in enumerate(samples.weights) if i not in {0, 1, 5, 11}]
    assert_average(ema, taken)
    ticks = [0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    groups = [sum(ticks[i : i + 3]) for i in range(0, 18, 3)]
    assert_average_of_groups(sparse, samples.weights[2:18:3], groups)


def test_loss_scaling_with_accumulation_counts_optimizer_steps():
    model, ema = loss_scaled(gradient_accumulation_steps=4), EMA(0.9)
    steps = Steps()
    fit(model, steps, ema, batches=12, epochs=2)
    assert len(steps.weights) == 6
    assert_average(ema, steps.weights)


def test_no_step_at_all_makes_no_average_and_says_so(scaled, tmp_path):
    averages = [EMA(0.9), SWAG(rank=2, swap=False)]
    with pytest.warns(UserWarning, match="made no average"):
        fit(scaled, Overflowing(set(range(20))), *averages)
    scaled.save_weights(tmp_path / "a.weights.h5")
    scaled.load_weights(tmp_path / "a.weights.h5")
    assert [probe.counts(average).averaged for average in averages] == [0, 0]


def test_a_loop_after_fit_counts_each_of_its_steps_once(scaled):
    """With loss scaling the optimizer's count decides, but in `fit` only."""
    samples, ema = Samples(), EMA(0.9)
    fit(scaled, samples, ema, epochs=1)
    train_in_a_loop(scaled, samples, ema)
    assert_average(ema, samples.weights)
    with pytest.raises(KeyboardInterrupt):
        fit(scaled, ema, Interrupting(), epochs=1)
    samples.weights.append(scaled.get_weights())
    ema.restore()
    # No step of the optimizer, whose count would tell the same.
    for n in range(4):
        scaled.set_weights([w + n for w in scaled.get_weights()])
        samples.weights.append(scaled.get_weights())
        ema.update()
    assert_average(ema, samples.weights)


def train_in_a_loop(model, samples, ema):
    x, y = data(10)
    ema.restore()
    for start in range(0, len(x), BATCH):
        model.train_on_batch(x[start : start + BATCH], y[start : start + BATCH])
        samples.weights.append(model.get_weights())
        ema.update()


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


def test_an_idle_optimizer_with_loss_scaling_is_found_out():
    """As Keras makes of any optimizer under the policy mixed_float16."""
    samples, ema = Samples(), EMA(0.9)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    fit(compiled(TwoOptimizers(), optimizer), samples, ema)
    assert probe.counts(ema).averaged == 20
    assert_average(ema, samples.weights)


@needs_groups
def test_an_idle_optimizer_is_found_out_where_groups_may_be_short():
    samples, ema = Samples(), EMA(0.9)
    model = compiled(TwoOptimizers(), steps_per_execution=2)
    for _ in range(2):
        fit_generator(model, samples, ema, batches=8)
    assert_average_of_groups(ema, samples.weights, [2] * 8)


def test_the_clock_counts_the_steps_of_a_loop():
    clock = StepClock()
    for _ in range(3):
        clock.tick()
    assert clock.now == clock.reading().steps == 3
