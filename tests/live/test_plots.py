"""Plots of a real training: weights are restored, scores are drawn."""

from types import SimpleNamespace

import keras
import models
import numpy
import pytest
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, SWA, AverageEvaluator
from keras_wavg.plots import loss_plane, plot_history

CENTER = numpy.array([1.0, -2.0, 0.5])
POINTS = {
    name: [numpy.array([[n] for n in point[:2]]), numpy.array(point[2:])]
    for name, point in {"a": (1, 0, 0), "b": (3, 0, 0), "c": (2, 3, 4)}.items()
}


@pytest.fixture(scope="module")
def training():
    """Train a model with many kinds of weights, for points and a history."""
    keras.config.set_dtype_policy("float32")
    model, samples = compiled(models.batch_norm(), metrics=["mae"]), Samples()
    x, y = data(3)
    averages = [EMA(0.5), SWA(start_epoch=2, swap=False)]
    evaluator = AverageEvaluator(x, y, averages=averages, every_epochs=2)
    bigger = AverageEvaluator(x, y, averages=averages, name="big_val")
    history = model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=5,
        verbose=0,
        callbacks=[samples, *averages, evaluator, bigger],
    )
    return SimpleNamespace(
        model=model,
        averages=averages,
        samples=samples.weights,
        points=dict(zip("abc", samples.weights, strict=False)),
        history=history,
    )


def test_measuring_a_plane_does_not_change_the_average(training):
    model, (ema, _) = training.model, training.averages
    average = model.get_weights()
    assert equal(average, ema.get_weights())
    loss_plane(model, training.points, float, resolution=2, verbose=0)
    assert equal(model.get_weights(), average)
    ema.restore()
    assert equal(model.get_weights(), training.samples[-1])
    loss_plane(model, training.points, float, resolution=2, verbose=0)
    assert equal(model.get_weights(), training.samples[-1])


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_after(interruption, training):
    model = training.model
    before = model.get_weights()

    def score():
        assert not equal(model.get_weights(), before)
        raise interruption

    with pytest.raises(interruption):
        loss_plane(model, training.points, score, verbose=0)
    assert equal(model.get_weights(), before)


def test_a_float32_average_of_two_points_spans_no_plane(training):
    first, second = training.samples[0], training.samples[2]
    average = [
        ((a + b) / 2).astype(a.dtype)
        for a, b in zip(first, second, strict=True)
    ]
    points = {"a": first, "b": second, "c": average}
    with pytest.raises(ValueError, match="not on one line"):
        loss_plane(training.model, points, float, verbose=0)


def test_scores_of_an_evaluator_are_drawn(training, figures, tmp_path):
    names = ["raw", *(average.name for average in training.averages)]

    def curves(monitor):
        ax = plot_history(training.history, monitor, mode="min")
        return ax, {
            line.get_label().split(":")[0]: line.get_xydata().T.tolist()
            for line in ax.lines
        }

    ax, every_other = curves("val_loss")
    assert list(every_other) == names
    assert every_other["raw"][0] == [1, 2, 4]
    _, drawn = curves("big_val_mae")
    assert list(drawn) == names
    for name in names:
        scores = training.history.history[f"{name}_big_val_mae"]
        assert drawn[name][1] == scores
    ax.set_yscale("log")
    ax.figure.savefig(tmp_path / "history.pdf")


def three_weights():
    """Return a model with two weights in a kernel and one in a bias."""
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def score_of(model):
    """Return a score that is a quadratic function of the weights."""

    def score():
        vector = numpy.concatenate([w.ravel() for w in model.get_weights()])
        return float(((vector - CENTER) ** 2).sum())

    return score


def measured(model, score):
    return loss_plane(model, POINTS, score, resolution=3, verbose=0)


def test_a_score_may_change_the_weights():
    model = three_weights()
    score = score_of(model)
    expected = measured(model, score).scores

    def score_and_overwrite():
        value = score()
        model.set_weights([numpy.full((2, 1), 9.0), numpy.full(1, 9.0)])
        return value

    assert (measured(model, score_and_overwrite).scores == expected).all()


class Counter(keras.layers.Layer):
    """Has an integer weight."""

    def build(self, shape):
        self.count = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.bias = self.add_weight(shape=(3,), initializer="zeros")

    def call(self, inputs):
        return inputs + self.bias


def test_integer_weights_are_unchanged():
    model = keras.Sequential([keras.Input((3,)), Counter()])
    layer = model.layers[0]
    layer.count.assign(7)
    kinds = ["int" in str(weight.dtype) for weight in model.weights]
    points = {
        name: [numpy.array(3) if is_int else row for is_int in kinds]
        for name, row in zip("abc", numpy.eye(3), strict=True)
    }
    counts = []
    loss_plane(
        model,
        points,
        lambda: counts.append(int(layer.count)) or 0,
        resolution=2,
        verbose=0,
    )
    assert counts == [7] * 4


def test_half_precision_weights_are_restored():
    keras.config.set_dtype_policy("bfloat16")
    model = three_weights()
    before = model.get_weights()
    plane = measured(model, score_of(model))
    assert equal(model.get_weights(), before)
    assert plane.points["c"] == pytest.approx((1, 5))
