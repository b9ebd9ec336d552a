"""`Lookahead` and Switch EMA: averages that replace the raw weights."""

import keras
import models
import numpy
import pytest
import reference
import reused
from models import BATCH, InOrder, Samples, compiled, data, equal

from keras_wavg import LAWA, Lookahead, SwitchEMA, resume

X, Y = data(6)


class BatchEnds(keras.callbacks.Callback):
    """Records the weights after each batch, before or after a callback."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_begin(self, logs=None):
        self.initial = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def fit(model, *callbacks, epochs=3, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def trained(model, weights):
    """Of all weights, those that gradients train."""
    return [
        w for v, w in zip(model.weights, weights, strict=True) if v.trainable
    ]


def near(received, expected):
    return reference.relative_error(received, expected) < 1e-6


# How weights are assigned is the same in each kind of model.
@pytest.mark.parametrize("kind", ["batch_norm", "subclassed"])
def test_slow_weights_are_those_of_the_paper(kind):
    model = compiled(models.KINDS[kind]())
    model(X[:1])
    fast, slow = BatchEnds(), BatchEnds()
    fit(model, InOrder(fast, Lookahead(every_steps=4, alpha=0.3), slow))
    # That a step starts from slow weights shows in the fast ones after it.
    for n in range(4, 18, 4):
        synchronized = fast.weights[3:n:4]
        expected = reference.lookahead(synchronized, fast.initial, 0.3)
        received = trained(model, slow.weights[n - 1])
        assert near(received, trained(model, expected))
        assert not near(received, trained(model, fast.weights[n - 1]))
    # Between two synchronizations the weights are unchanged.
    assert equal(fast.weights[4], slow.weights[4])
    # Moving statistics are not synchronized.
    pairs = zip(model.weights, fast.weights[3], slow.weights[3], strict=True)
    for variable, before, after in pairs:
        assert equal([before], [after]) is not variable.trainable
    assert len(model.non_trainable_weights) == 2


def test_the_next_step_starts_from_the_slow_weights():
    """With a learning rate of 0, only `Jump` and `Lookahead` change weights."""
    model = reused.dense()
    model.optimizer.learning_rate = 0.0
    ones = [numpy.ones_like(w) for w in model.get_weights()]
    model.set_weights([w * 0 for w in ones])

    class Jump(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.set_weights([w + 1 for w in self.model.get_weights()])

    samples = Samples()
    lookahead = Lookahead(3, 0.5, swap=False)
    fit(model, InOrder(Jump(), lookahead, samples), epochs=1)
    # 1, 2, 3 -> 1.5; 2.5, 3.5, 4.5 -> 3: as in the paper.
    walk = [float(w[0].ravel()[0]) for w in samples.weights]
    assert walk == pytest.approx([1, 2, 1.5, 2.5, 3.5, 3.0])


@pytest.mark.parametrize(
    ("swap", "bias_correction"), [(True, True), (False, False)]
)
def test_at_each_switch_the_average_replaces_the_raw_weights(
    swap, bias_correction
):
    model = reused.dense()
    fast, slow = BatchEnds(), BatchEnds()
    ema = SwitchEMA(
        0.8, switch_every_steps=6, bias_correction=bias_correction, swap=swap
    )
    fit(model, InOrder(fast, ema, slow), validation_data=(X, Y))
    initial = None if bias_correction else fast.initial
    for n in (6, 12, 18):
        expected = reference.ema(fast.weights[:n], 0.8, initial=initial)
        assert near(slow.weights[n - 1], expected)
    assert equal(fast.weights[6], slow.weights[6])
    ema.restore()
    assert equal(model.get_weights(), ema.get_weights())


def test_without_swap_switch_ema_works_under_another_average():
    model, fast = reused.dense(), BatchEnds()
    switched = SwitchEMA(0.8, switch_every_steps=6, swap=False)
    fit(model, InOrder(fast, LAWA(every_steps=1), switched), epochs=1)
    expected = reference.ema(fast.weights, 0.8)
    assert near(switched.get_weights(), expected)


def test_in_a_custom_training_loop_lookahead_is_as_defined():
    model, walk = reused.dense(), []
    lookahead = Lookahead(2, 0.5)
    lookahead.set_model(model)
    initial = model.get_weights()
    for _ in range(4):
        model.train_on_batch(X, Y)
        walk.append(model.get_weights())
        lookahead.update()
    expected = reference.lookahead(walk[1::2], initial, 0.5)
    assert near(model.get_weights(), expected)


class EpochStarts(keras.callbacks.Callback):
    """Records the weights from which each epoch starts."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_begin(self, epoch, logs=None):
        self.weights.append(self.model.get_weights())


@pytest.mark.parametrize("validation", [None, data(2, seed=1)])
@pytest.mark.parametrize("swap", [True, False])
def test_switch_ema_starts_each_epoch_from_the_average(validation, swap):
    model, samples, starts = reused.dense(), Samples(), EpochStarts()
    ema = SwitchEMA(0.8, swap=swap)
    fit(model, samples, starts, ema, validation_data=validation)
    for n in (1, 2):
        expected = reference.ema(samples.weights[: 6 * n], 0.8)
        assert near(starts.weights[n], expected)
        assert not near(starts.weights[n], samples.weights[6 * n - 1])
    ema.restore()
    assert near(model.get_weights(), reference.ema(samples.weights, 0.8))


def test_switch_ema_switches_every_second_epoch():
    model, samples, starts = reused.dense(), Samples(), EpochStarts()
    ema = SwitchEMA(0.8, switch_every_epochs=2)
    fit(model, samples, starts, ema, epochs=4)
    assert equal(starts.weights[1], samples.weights[5])
    assert near(starts.weights[2], reference.ema(samples.weights[:12], 0.8))
    assert equal(starts.weights[3], samples.weights[17])


def test_switch_ema_continues_its_count_of_epochs_in_a_second_fit():
    model, samples, starts = reused.dense(), Samples(), EpochStarts()
    ema = SwitchEMA(0.8, switch_every_epochs=2)
    for _ in range(2):
        fit(model, samples, ema, epochs=1)
    fit(model, starts, ema, epochs=1)
    assert near(starts.weights[0], reference.ema(samples.weights, 0.8))


def test_switch_ema_resumes_exactly_between_two_switches(tmp_path):
    path, backup = tmp_path / "{epoch}.keras", tmp_path / "3.keras"
    model, ema = reused.dense(), SwitchEMA(0.8, switch_every_epochs=2)
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    fit(model, ema, checkpoint, epochs=5, shuffle=False)
    again = SwitchEMA(0.8, switch_every_epochs=2)
    resumed = compiled(models.dense())
    resume(resumed, backup, [again])
    fit(resumed, again, epochs=5, initial_epoch=3, shuffle=False)
    assert equal(again.get_weights(), ema.get_weights())
    ema.restore()
    again.restore()
    assert equal(resumed.get_weights(), model.get_weights())


def test_switch_ema_does_not_write_moving_statistics():
    model, ends = compiled(models.batch_norm()), Samples()
    ema, starts = SwitchEMA(0.8), EpochStarts()
    fit(model, ends, starts, ema, epochs=2)
    pairs = zip(model.weights, ends.weights[5], starts.weights[1], strict=True)
    for variable, before, after in pairs:
        assert equal([before], [after]) is not variable.trainable


def test_a_custom_training_loop_needs_switch_every_steps():
    model, walk = reused.dense(), []
    by_epoch, by_step = SwitchEMA(0.8), SwitchEMA(0.8, switch_every_steps=2)
    by_epoch.set_model(model)
    with pytest.raises(ValueError, match="needs `switch_every_steps`"):
        by_epoch.update()
    model = compiled(models.dense())
    by_step.set_model(model)
    for _ in range(4):
        model.train_on_batch(X, Y)
        walk.append(model.get_weights())
        by_step.update()
    assert near(model.get_weights(), reference.ema(walk, 0.8))
