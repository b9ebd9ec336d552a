"""Averages that are written back into the weights that are being trained."""

import keras
import models
import numpy
import pytest
import reference
import reused
from models import BATCH, InOrder, Samples, compiled, data, equal

from keras_wavg import EMA, LAWA, Lookahead

X, Y = data(6)


class Fast(keras.callbacks.Callback):
    """Records the weights after each batch, before or after an average."""

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
def test_weights_are_led_back_as_the_paper_says(kind):
    model = compiled(models.KINDS[kind]())
    model(X[:1])
    fast, slow = Fast(), Fast()
    fit(model, InOrder(fast, Lookahead(every=4, alpha=0.3), slow))
    # A step that starts from slow weights shows in the fast ones after it.
    for n in range(4, 18, 4):
        synchronized = fast.weights[3:n:4]
        expected = reference.lookahead(synchronized, fast.initial, 0.3)
        received = trained(model, slow.weights[n - 1])
        assert near(received, trained(model, expected))
        assert not near(received, trained(model, fast.weights[n - 1]))
    # Between two synchronizations nothing is touched.
    assert equal(fast.weights[4], slow.weights[4])
    # Moving statistics go on by themselves.
    pairs = zip(model.weights, fast.weights[3], slow.weights[3], strict=True)
    for variable, before, after in pairs:
        assert equal([before], [after]) is not variable.trainable
    assert len(model.non_trainable_weights) == 2


def test_the_next_step_starts_from_the_slow_weights():
    """Without a gradient, weights are what Lookahead made of them."""
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
    # 1, 2, 3 -> 1.5; 2.5, 3.5, 4.5 -> 3: the paper's walk.
    walk = [float(w[0].ravel()[0]) for w in samples.weights]
    assert walk == pytest.approx([1, 2, 1.5, 2.5, 3.5, 3.0])


@pytest.mark.parametrize(
    ("swap", "bias_correction"), [(True, True), (False, False)]
)
def test_an_average_is_written_back_every_so_many_steps(swap, bias_correction):
    model = reused.dense()
    fast, slow = Fast(), Fast()
    ema = EMA(
        0.8, overwrite_every=6, bias_correction=bias_correction, swap=swap
    )
    fit(model, InOrder(fast, ema, slow), validation_data=(X, Y))
    initial = None if bias_correction else fast.initial
    for n in (6, 12, 18):
        expected = reference.ema(fast.weights[:n], 0.8, initial=initial)
        assert near(slow.weights[n - 1], expected)
    assert equal(fast.weights[6], slow.weights[6])
    ema.restore()
    assert equal(model.get_weights(), ema.get_weights())


def test_an_average_that_only_rides_along_is_written_back_under_another():
    model, fast = reused.dense(), Fast()
    rider = EMA(0.8, overwrite_every=6, swap=False)
    fit(model, InOrder(fast, LAWA(every_steps=1), rider), epochs=1)
    expected = reference.ema(fast.weights, 0.8)
    assert near(rider.get_weights(), expected)


def test_a_loop_without_fit_is_written_back_too():
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
