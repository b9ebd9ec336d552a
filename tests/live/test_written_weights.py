"""An average does not change training, even if other code writes weights."""

import contextlib
import math
import warnings

import keras
import models
import probe
import pytest
import reference
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, SWA

X, Y = data(6)
LIMIT = 1e-6


def fit(model, *callbacks, epochs=2, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def losses(build, *callbacks, **options):
    return fit(build(), *callbacks, **options).history["loss"]


def assert_average(ema, samples):
    expected = reference.ema(samples.weights, ema.decay)
    assert reference.relative_error(ema.get_weights(), expected) < LIMIT


class Counter(keras.layers.Layer):
    """Counts its calls, including those at inference."""

    def build(self, shape):
        self.count = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="count"
        )

    def call(self, inputs):
        self.count.assign_add(1.0)
        return inputs


@models.seeded
def counting():
    return compiled(
        keras.Sequential([keras.Input((4,)), Counter(), keras.layers.Dense(1)])
    )


class Touch(keras.callbacks.Callback):
    """Writes to a weight that is not trainable, in one hook."""

    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.write)

    def write(self, *_, **__):
        count = self.model.layers[0].count
        count.assign(count.value + 1.0)


class Statistic(keras.layers.Layer):
    """Tracks the mean of its inputs, also in validation."""

    def build(self, shape):
        self.mean = self.add_weight(
            shape=shape[-1:], initializer="zeros", trainable=False, name="mean"
        )

    def call(self, inputs):
        mean = keras.ops.mean(inputs, axis=0)
        self.mean.assign(0.9 * self.mean + 0.1 * mean)
        return inputs - self.mean


@models.seeded
def tracking():
    layers = [keras.Input((4,)), Statistic(), keras.layers.Dense(1)]
    return compiled(keras.Sequential(layers))


class Cached(keras.Model):
    """Keeps the last batch that it was evaluated with."""

    def __init__(self):
        super().__init__()
        self.inner = models.dense()
        self.last = self.add_weight(
            shape=(BATCH, 4), initializer="zeros", trainable=False, name="last"
        )

    def call(self, inputs, training=False):
        if not training:
            self.last.assign(inputs)
        return self.inner(inputs)


@models.seeded
def caching():
    model = Cached()
    model(X[:BATCH])
    return compiled(model)


def count_in(model):
    return float(model.layers[0].count)


VALIDATION = {"validation_data": (X, Y), "validation_batch_size": BATCH}


@pytest.mark.filterwarnings("ignore:.*which is not trainable")
def test_a_cache_written_in_validation_does_not_change_training():
    ema = EMA(0.9)
    assert losses(caching, ema, **VALIDATION) == losses(caching, **VALIDATION)
    assert probe.counts(ema).averaged == 12


def test_a_statistic_changed_in_validation_warns_and_can_be_excluded():
    with pytest.warns(match="mean', which is not trainable.*`include`"):
        losses(tracking, ema := EMA(0.9), **VALIDATION)
    assert probe.counts(ema).averaged == 12
    plain = losses(tracking, **VALIDATION)
    without = EMA(0.9, include=lambda path: "mean" not in path)
    assert losses(tracking, without, **VALIDATION) == plain


@pytest.mark.filterwarnings("ignore:.*which is not trainable")
def test_state_that_changes_at_inference_does_not_change_training():
    validation = {"validation_data": (X, Y)}
    plain = losses(counting, **validation)
    model, ema = counting(), EMA(0.9)
    assert fit(model, ema, **validation).history["loss"] == plain
    assert probe.counts(ema).averaged == 12
    ema.restore()
    again = count_in(model)
    model.predict(X, verbose=0, callbacks=[ema])
    assert count_in(model) > again


@pytest.mark.parametrize("hook", ["on_test_batch_end", "on_epoch_end"])
def test_a_callback_may_write_to_untrained_weights_in_validation(hook):
    validation = {"validation_data": (X, Y)}
    plain = losses(counting, Touch(hook), **validation)
    ema = EMA(0.9)
    with pytest.warns(match="count', which is not trainable, changed"):
        received = losses(counting, Touch(hook), ema, epochs=3, **validation)
    assert received[:2] == plain
    assert probe.counts(ema).averaged == 18


class Clip(keras.callbacks.Callback):
    """Clips a kernel after each batch, and records what it found."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[0].kernel
        self.seen.append(keras.ops.convert_to_numpy(kernel.value).copy())
        kernel.assign(keras.ops.clip(kernel.value, -0.3, 0.3))


def dense():
    return compiled(models.dense())


@pytest.mark.parametrize("validation", [{}, {"validation_data": (X, Y)}])
def test_a_callback_may_write_weights_after_each_batch_in_any_order(
    validation,
):
    clip = Clip()
    plain = losses(dense, clip, **validation)
    raw = clip.seen
    for order in (1, -1):
        ema, other = EMA(0.9), EMA(0.5, swap=False, name="other")
        callbacks = [ema, other, Clip()][::order]
        assert losses(dense, *callbacks, **validation) == plain
        found = next(c for c in callbacks if isinstance(c, Clip)).seen
        assert equal(found, raw)
        assert probe.counts(ema).averaged == 12
        assert probe.counts(other).averaged == 12
        expected = reference.ema([[kernel] for kernel in raw], ema.decay)
        received = ema.get_weights()[:1]
        assert reference.relative_error(received, expected) < LIMIT


class Target(keras.callbacks.Callback):
    """Averages a target network, and sometimes assigns it to the model."""

    def on_train_begin(self, logs=None):
        self.target = self.model.get_weights()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        weights = self.model.get_weights()
        self.target = [
            0.5 * t + 0.5 * w for t, w in zip(self.target, weights, strict=True)
        ]
        if self.batches % 3 == 0:
            self.model.set_weights(self.target)


class Prune(keras.callbacks.Callback):
    """Sets small elements to zero, after batches and at ends of epochs."""

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[0].kernel
        small = keras.ops.abs(kernel.value) < 0.2
        kernel.assign(keras.ops.where(small, 0.0, kernel.value))

    def on_epoch_begin(self, epoch, logs=None):
        self.on_train_batch_end(0)


@pytest.mark.parametrize("writer", [Target, Prune])
@pytest.mark.parametrize("order", [1, -1])
def test_an_average_does_not_change_target_networks_or_pruning(writer, order):
    plain = losses(dense, writer(), validation_data=(X, Y))
    ema = EMA(0.9)
    callbacks = [writer(), ema][::order]
    assert losses(dense, *callbacks, validation_data=(X, Y)) == plain
    assert probe.counts(ema).averaged == 12


def test_a_callback_may_write_weights_with_data_of_unknown_length():
    def train(*callbacks):
        model = dense()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your input ran out of data")
            history = model.fit(
                models.generator(6), verbose=0, callbacks=[*callbacks]
            )
        return history.history["loss"]

    plain = train(Clip())
    for order in (1, -1):
        ema = EMA(0.9)
        assert train(*[ema, Clip()][::order]) == plain
        assert probe.counts(ema).averaged == 6


def test_restore_keeps_a_replaced_weight_and_restores_the_others():
    model, ema, samples = dense(), EMA(0.9), Samples()
    fit(model, samples, ema)
    bias = model.layers[1].bias
    bias.assign([7.0])
    ema.restore()
    assert equal(model.get_weights()[:-1], samples.weights[-1][:-1])
    assert bias.value[0] == 7


def test_a_file_records_that_weights_were_replaced(tmp_path):
    model, ema = dense(), EMA(0.9)
    fit(model, ema)
    model.layers[1].bias.assign([7.0])
    model.save_weights(tmp_path / "a.weights.h5")
    again = EMA(0.9)
    other = models.fresh(models.dense, again)
    other.load_weights(tmp_path / "a.weights.h5")
    with pytest.warns(match="restarts: 1 weights"):
        fit(other, again)
    assert probe.counts(again).averaged == 12


# Other fits


class TrainAnother(keras.callbacks.Callback):
    """Trains another model in a hook of `fit`."""

    def __init__(self, hook, average):
        super().__init__()
        self.average = average
        self.samples = []
        setattr(self, hook, self.train)

    def train(self, *_, **__):
        if not self.samples:
            self.samples = Samples()
            fit(dense(), self.samples, self.average, epochs=3)


@pytest.mark.parametrize(
    "hook", ["on_epoch_end", "on_train_batch_end", "on_test_begin"]
)
def test_a_fit_in_a_hook_of_another_fit_has_the_correct_average(hook):
    inner = TrainAnother(hook, SWA())
    outer, samples = EMA(0.9), Samples()
    fit(dense(), inner, samples, outer, validation_data=(X, Y))
    expected = reference.mean(inner.samples.weights[5::6])
    received = inner.average.get_weights()
    assert reference.relative_error(received, expected) < LIMIT
    assert_average(outer, samples)


class EvaluateInEpoch(keras.callbacks.Callback):
    """Evaluates the average in the middle of an epoch."""

    def __init__(self, make_callbacks):
        super().__init__()
        self.make_callbacks = make_callbacks

    def on_train_begin(self, logs=None):
        self.callbacks = self.make_callbacks(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.model.evaluate(X, Y, verbose=0, callbacks=self.callbacks)


@pytest.mark.parametrize("is_callback_list", [False, True])
def test_an_evaluation_within_an_epoch_does_not_end_the_epoch(is_callback_list):
    def callbacks(model):
        if is_callback_list:
            return keras.callbacks.CallbackList([swa], model=model)
        return [swa]

    plain, samples, swa = Samples(), Samples(), SWA()
    fit(dense(), plain)
    fit(dense(), samples, EvaluateInEpoch(callbacks), swa)
    assert equal(samples.weights[-1], plain.weights[-1])
    expected = reference.mean(samples.weights[5::6])
    assert reference.relative_error(swa.get_weights(), expected) < LIMIT


@models.seeded
def sharing():
    """Two models that share an encoder."""
    inputs = keras.Input((4,))
    encoded = keras.layers.Dense(6, activation="tanh")(inputs)
    return [
        compiled(keras.Model(inputs, keras.layers.Dense(1)(encoded)))
        for _ in range(2)
    ]


def test_models_that_share_layers_can_be_trained_in_turn():
    def train(*averages):
        found = []
        for _ in range(3):
            for i, model in enumerate(pair):
                found += fit(model, *averages[i : i + 1]).history["loss"]
        return found

    pair = sharing()
    plain = train()
    pair, averages = sharing(), (EMA(0.9), EMA(0.5))
    assert train(*averages) == plain
    assert [probe.counts(a).averaged for a in averages] == [36, 36]


# Contexts


def test_contexts_can_be_nested_in_any_order():
    model, samples = dense(), Samples()
    one, two = EMA(0.9), EMA(0.5, swap=False, name="two")
    fit(model, samples, one, two)
    raw = samples.weights[-1]
    averages = {one: model.get_weights()}
    with two.applied():
        averages[two] = model.get_weights()
        with one.applied():
            assert equal(model.get_weights(), averages[one])
            with two.applied(), one.applied():
                pass
            assert equal(model.get_weights(), averages[one])
        assert equal(model.get_weights(), averages[two])
    assert equal(model.get_weights(), averages[one])
    two.apply()
    one.restore()
    assert equal(model.get_weights(), raw)
    with one.applied(), two.applied():
        one.restore()
        assert equal(model.get_weights(), raw)
    assert equal(model.get_weights(), raw)


@pytest.mark.parametrize("use", ["evaluate", "predict", "train_on_batch"])
@pytest.mark.parametrize("outer", ["without a sample", "another", "the same"])
def test_contexts_restore_the_weights_after_a_step_of_the_model(use, outer):
    """JAX donates the arrays of a model, so contexts must not keep them."""
    model, ema = compiled(models.batch_norm()), EMA(0.9)
    other = EMA(0.5, swap=False, name="other")
    none = EMA(0.5, swap=False, name="none", start_step=1000)
    fit(model, ema, other, none)
    shown = model.get_weights()
    steps = {
        "evaluate": lambda: model.evaluate(X, Y, verbose=0),
        "predict": lambda: model.predict(X, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(X, Y),
    }
    averages = {"without a sample": none, "another": other, "the same": ema}
    with averages[outer].applied():
        with ema.applied():
            pass
        steps[use]()
        with none.applied(), other.applied():
            pass
        steps[use]()
    if use != "train_on_batch":
        assert equal(model.get_weights(), shown)
    assert math.isfinite(model.evaluate(X, Y, verbose=0))


@pytest.mark.parametrize("outer", ["ema", "other", "none"])
@pytest.mark.parametrize("swap", [True, False])
def test_training_in_a_context_leaves_no_outdated_average(
    outer, swap, tmp_path
):
    model, samples, ema = dense(), Samples(), EMA(0.9, swap=swap)
    other = EMA(0.5, swap=False, name="other")
    none = EMA(0.5, swap=False, name="none", start_step=1000)
    fit(model, samples, ema, other, none)
    ema.apply()
    with {"ema": ema, "other": other, "none": none}[outer].applied():
        fit(model, samples, ema)
    model.save_weights(tmp_path / "a.weights.h5")
    again = EMA(0.9, swap=swap)
    models.fresh(models.dense, again).load_weights(tmp_path / "a.weights.h5")
    assert_average(ema, samples)
    assert_average(again, samples)
    ema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_a_file_saved_in_a_context_has_the_raw_weights(tmp_path):
    model, samples = dense(), Samples()
    one, two = EMA(0.9), EMA(0.5, swap=False, name="two")
    fit(model, samples, one, two)
    with two.applied():
        model.save_weights(tmp_path / "a.weights.h5")
        shown = model.get_weights()
    again = EMA(0.9), EMA(0.5, swap=False, name="two")
    other = models.fresh(models.dense, *again)
    other.load_weights(tmp_path / "a.weights.h5")
    assert equal(other.get_weights(), shown)
    again[0].restore()
    assert equal(other.get_weights(), samples.weights[-1])
    for loaded, saved in zip(again, (one, two), strict=True):
        assert equal(loaded.get_weights(), saved.get_weights())


def test_weights_written_in_a_context_are_kept():
    model, ema = dense(), EMA(0.9)
    fit(model, ema)
    ema.restore()
    new = [w * 0.9 for w in model.get_weights()]
    with ema.applied():
        model.set_weights(new)
    assert equal(model.get_weights(), new)


def test_weights_written_in_a_context_replace_a_swapped_in_average():
    model, one, two = dense(), EMA(0.9), EMA(0.5, swap=False, name="two")
    fit(model, one, two)
    new = [w * 0.9 for w in model.get_weights()]
    with two.applied():
        model.set_weights(new)
    assert equal(model.get_weights(), new)
    one.restore()
    assert equal(model.get_weights(), new)


def test_a_model_whose_weights_were_replaced_is_refused_and_not_changed():
    model, ema = dense(), EMA(0.9)
    fit(model, ema)
    model.quantize("int8")
    before = model.get_weights()
    for method in (ema.restore, ema.apply, ema.get_weights):
        with pytest.raises(ValueError, match="must have the weights of"):
            method()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(ValueError, match="must have the"))
        stack.enter_context(ema.applied())
    assert equal(model.get_weights(), before)


def test_replacing_weights_while_an_average_is_swapped_in_warns():
    model, ema = dense(), EMA(0.9)
    fit(model, ema)
    shown = model.layers[0].get_weights()
    model.pop()
    model.compile("sgd", "mse", jit_compile=False)
    found = Samples()
    with pytest.warns(match=r"were replaced \(by `quantize`, `pop`"):
        fit(model, found, EMA(0.9))
    assert equal(found.initial, shown)


def test_use_ema_of_the_optimizer_causes_a_warning():
    model = compiled(models.dense(), keras.optimizers.SGD(0.01, use_ema=True))
    with pytest.warns(match="must not have `use_ema=True` beside `EMA`"):
        fit(model, EMA(0.9, swap=False), epochs=1)


# Warnings


def warned_at(code):
    """The file and line of each warning about a missing average."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        code()
    return [
        (w.filename, w.lineno) for w in caught if "no average" in str(w.message)
    ]


def test_each_warning_has_the_line_of_the_user_code():
    model = dense()

    def train():
        for _ in range(2):
            model.fit(X, Y, verbose=0, callbacks=[EMA(0.9, start_step=1000)])

    line = train.__code__.co_firstlineno + 2
    assert warned_at(train) == [(__file__, line)] * 2


def test_a_context_swaps_the_average_in_again_after_restore_within_it():
    """The weights do not count as replaced."""
    model, samples, ema = dense(), Samples(), EMA(0.9)
    fit(model, samples, ema)
    shown = model.get_weights()
    with ema.applied():
        ema.restore()
    assert equal(model.get_weights(), shown)
    fit(model, samples, ema)
    assert_average(ema, samples)


def test_a_context_of_an_empty_average_restores_the_weights():
    model, ema, none = dense(), EMA(0.9), EMA(0.5, swap=False, name="none")
    fit(model, ema)
    averaged = model.get_weights()
    none.set_model(model)
    with none.applied():
        assert equal(model.get_weights(), averaged)
        ema.restore()
    assert equal(model.get_weights(), averaged)
    ema.restore()
    raw = model.get_weights()
    with none.applied():
        ema.apply()
    assert equal(model.get_weights(), raw)
