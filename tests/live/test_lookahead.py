"""Averages that are written back into the weights that are being trained."""

import keras
import models
import numpy
import pytest
import reference
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, Lookahead

X, Y = data(6)


class Fast(keras.callbacks.Callback):
    """Records the weights before and after another callback's turn.

    In the list twice: in front of it and behind it.
    """

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


@pytest.mark.parametrize("kind", models.KINDS)
def test_weights_are_led_back_as_the_paper_says(kind):
    if kind == "lazy":
        pytest.skip("a textbook average needs a model that is built")
    model = compiled(models.KINDS[kind]())
    model(X[:1])
    fast, slow = Fast(), Fast()
    fit(model, fast, Lookahead(every=4, alpha=0.3), slow)
    # A step that starts from slow weights shows in the fast ones after it.
    for n in range(4, 18, 4):
        synchronized = fast.weights[3:n:4]
        expected = reference.lookahead(synchronized, fast.initial, 0.3)
        received = trained(model, slow.weights[n - 1])
        assert near(received, trained(model, expected))
        assert not near(received, trained(model, fast.weights[n - 1]))
    # Between two synchronizations nothing is touched.
    assert equal(fast.weights[4], slow.weights[4])


def test_the_next_step_starts_from_the_slow_weights():
    """Without a gradient, weights are what Lookahead made of them."""
    model = compiled(models.dense(), keras.optimizers.SGD(0.0))
    ones = [numpy.ones_like(w) for w in model.get_weights()]
    model.set_weights([w * 0 for w in ones])

    class Jump(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.set_weights([w + 1 for w in self.model.get_weights()])

    samples = Samples()
    fit(model, Jump(), Lookahead(3, 0.5, swap=False), samples, epochs=1)
    # 1, 2, 3 -> 1.5; 2.5, 3.5, 4.5 -> 3: the paper's walk.
    walk = [float(w[0].ravel()[0]) for w in samples.weights]
    assert walk == pytest.approx([1, 2, 1.5, 2.5, 3.5, 3.0])


def test_moving_statistics_go_on_by_themselves():
    model = compiled(models.batch_norm())
    fast, slow = Fast(), Fast()
    fit(model, fast, Lookahead(3), slow)
    statistics = [
        (before, after)
        for v, before, after in zip(
            model.weights, fast.weights[2], slow.weights[2], strict=True
        )
        if not v.trainable
    ]
    assert len(statistics) >= 2
    assert all(equal([before], [after]) for before, after in statistics)


@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_an_average_is_written_back_every_so_many_steps(swap, bias_correction):
    model = compiled(models.dense())
    fast, slow = Fast(), Fast()
    ema = EMA(
        0.8, overwrite_every=6, bias_correction=bias_correction, swap=swap
    )
    fit(model, fast, ema, slow, validation_data=(X, Y))
    initial = None if bias_correction else fast.initial
    for n in (6, 12, 18):
        expected = reference.ema(fast.weights[:n], 0.8, initial=initial)
        assert near(slow.weights[n - 1], expected)
    assert equal(fast.weights[6], slow.weights[6])
    ema.restore()
    assert equal(model.get_weights(), ema.get_weights())


def test_an_average_that_only_rides_along_is_written_back_under_another():
    """At the last batch of an epoch the other one is in the model already."""
    model, fast = compiled(models.dense()), Fast()
    rider = EMA(0.8, overwrite_every=6, swap=False)
    fit(model, fast, EMA(0.9), rider, epochs=1)
    expected = reference.ema(fast.weights, 0.8)
    assert near(rider.get_weights(), expected)


def test_one_that_rides_along_has_a_name_of_its_own():
    model = compiled(models.dense())
    fit(model, Lookahead(2), Lookahead(3, swap=False))


def test_a_loop_without_fit_is_written_back_too():
    model, walk = compiled(models.dense()), []
    lookahead = Lookahead(2, 0.5)
    lookahead.set_model(model)
    initial = model.get_weights()
    for _ in range(4):
        model.train_on_batch(X, Y)
        walk.append(model.get_weights())
        lookahead.update()
    expected = reference.lookahead(walk[1::2], initial, 0.5)
    assert near(model.get_weights(), expected)
