"""The distribution of `SWAG`, compared with its definition in float64."""

from typing import Any, NamedTuple

import keras
import models
import numpy
import probe
import pytest
import reference
import reused
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import SWAG

X, Y = data(6)


def fit(model, *callbacks, epochs=6, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


class Run(NamedTuple):
    """A training with averages of several ranks.

    Args:
        model: The model, with raw weights.
        samples: The weights after each epoch.
        swag: Averages by their rank.
    """

    model: Any
    samples: list
    swag: dict


@pytest.fixture(scope="module")
def run():
    keras.config.set_dtype_policy("float32")
    model, samples = compiled(models.dense()), Samples()
    swag = {
        rank: SWAG(rank=rank, swap=False, name=f"of_rank_{rank}")
        for rank in (2, 3, 4, 7)
    }
    fit(model, samples, *swag.values())
    return Run(model, samples.weights[5::6], swag)


def test_moments_are_those_of_the_samples(run):
    _, variance, deviations = reference.swag_moments(run.samples, rank=4)
    kept = probe.kept(run.swag[4])
    received = [squares / 6 for squares in kept["squares"]]
    scale = max(v.max() for v in variance)
    for got, expected in zip(received, variance, strict=True):
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-5 * scale)
    assert len(kept) == 5
    for n, expected in enumerate(deviations):
        received = kept[f"deviation_{n}"]
        assert reference.relative_error(received, expected) < 1e-6


def test_the_variance_of_weights_that_hardly_change_is_right():
    """E[w**2] - E[w]**2 in float32 would be rounding errors, or negative."""
    model, swag = compiled(models.dense()), SWAG(rank=2)
    swag.set_model(model)
    walk = [
        [numpy.float32(100 + 1e-3 * n) * numpy.ones_like(w) for w in weights]
        for n, weights in enumerate([model.get_weights()] * 5)
    ]
    for weights in walk:
        model.set_weights(weights)
        swag.update()
    expected = numpy.var([w[0].astype("float64") for w in walk], axis=0)
    received = probe.kept(swag)["squares"][0] / 5
    assert received == pytest.approx(expected, rel=0.02)


def flat(weights):
    return numpy.concatenate([w.ravel() for w in weights]).astype("float64")


def sampled(model, swag, count, scale):
    found = []
    for seed in range(count):
        with swag.sample(scale, seed=seed):
            found.append(flat(model.get_weights()))
    return numpy.array(found)


def covariance(samples, rank):
    _, variance, deviations = reference.swag_moments(samples, rank)
    low = numpy.array([flat(d) for d in deviations])
    diagonal = numpy.diag(numpy.maximum(flat(variance), 0))
    return diagonal + low.T @ low / (rank - 1)


def test_samples_have_the_mean_and_the_covariance_of_the_paper(run):
    """Whitened, the samples are standard normal."""
    found = sampled(run.model, run.swag[3], 600, 0.5)
    centred = found - flat(reference.mean(run.samples))
    expected = 0.5 * covariance(run.samples, 3)
    distances = numpy.einsum(
        "si,ij,sj->s", centred, numpy.linalg.inv(expected), centred
    )
    # Mean and standard deviation of a chi-squared distribution.
    degrees = centred.shape[1]
    assert distances.mean() == pytest.approx(degrees, rel=0.03)
    assert distances.std() == pytest.approx((2 * degrees) ** 0.5, rel=0.15)
    received = centred.T @ centred / len(centred)
    scatter = numpy.linalg.norm(received - expected)
    assert scatter < 0.25 * numpy.linalg.norm(expected)


def test_a_scale_multiplies_the_covariance(run):
    """Its root scales the distance of each sample from the mean."""
    mean = flat(run.swag[3].get_weights())
    default = sampled(run.model, run.swag[3], 5, 0.5) - mean
    for scale in (1.0, 2.0, 4.5):
        received = sampled(run.model, run.swag[3], 5, scale) - mean
        expected = default * (scale / 0.5) ** 0.5
        assert received == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_scale_of_zero_is_the_mean(run):
    with run.swag[2].sample(0, seed=0):
        assert equal(run.model.get_weights(), run.swag[2].get_weights())


def test_a_seed_determines_the_sample(run):
    draws = []
    for seed in (1, 1, 2, None, None):
        with run.swag[2].sample(seed=seed):
            draws.append(run.model.get_weights())
    assert equal(draws[0], draws[1])
    assert not equal(draws[0], draws[2])
    assert not equal(draws[3], draws[4])


def test_sample_and_predict_restore_the_weights():
    model, swag = reused.batch_norm(), SWAG(rank=2, batch_norm_data=X)
    fit(model, swag, epochs=3)

    def interrupt():
        with swag.sample(seed=0):
            assert not equal(model.get_weights(), before)
            raise KeyboardInterrupt

    for holds_mean in (True, False):
        if not holds_mean:
            swag.restore()
        before = model.get_weights()
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert equal(model.get_weights(), before)
        swag.predict(X, samples=2, verbose=0)
        assert equal(model.get_weights(), before)
        assert probe.is_in_model(swag) is holds_mean
    fit(model, swag, epochs=1)


def test_moving_statistics_are_averaged_or_measured_for_each_sample():
    """Without and with `batch_norm_data`."""
    model = reused.batch_norm()
    swag = SWAG(rank=2, swap=False)
    measured = SWAG(rank=2, batch_norm_data=X, name="measured")
    fit(model, swag, measured, epochs=3)
    mean = swag.get_weights()
    with swag.sample(seed=0):
        held = model.get_weights()
    for variable, got, expected in zip(model.weights, held, mean, strict=True):
        assert equal([got], [expected]) is not variable.trainable
    found, layer = [], model.layers[1]
    hidden = keras.Model(model.inputs, model.layers[0].output)
    for seed in (0, 1):
        with measured.sample(seed=seed):
            found.append(keras.ops.convert_to_numpy(layer.moving_mean.value))
            expected = hidden.predict(X, verbose=0).mean(axis=0)
        assert found[-1] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert not equal(found[:1], found[1:])


def test_predictions_are_the_mean_of_those_of_the_samples(run):
    model, swag = run.model, run.swag[2]
    received = swag.predict(X, samples=3, seed=5, verbose=0)
    assert received.dtype == "float32"
    single = []
    for seed in numpy.random.SeedSequence(5).spawn(3):
        with swag.sample(seed=seed):
            single.append(model.predict(X, verbose=0))
    assert received == pytest.approx(numpy.mean(single, axis=0), abs=1e-6)
    assert not numpy.allclose(single[0], single[1])


def test_predictions_keep_the_structure_of_the_outputs():
    inputs = keras.Input((4,))
    outputs = {"a": keras.layers.Dense(1)(inputs), "b": [inputs * 2]}
    model, swag = keras.Model(inputs, outputs), SWAG(rank=2)
    swag.set_model(model)
    for _ in range(2):
        swag.update()
    received = swag.predict(X, samples=2, verbose=0)
    expected = model.predict(X, verbose=0)
    assert received["a"].shape == expected["a"].shape
    assert received["b"][0] == pytest.approx(expected["b"][0])


def test_a_progress_bar_counts_the_samples(capsys, run):
    run.swag[2].predict(X, samples=3)
    assert "3/3" in capsys.readouterr().out
    run.swag[2].predict(X, samples=3, verbose=0)
    assert not capsys.readouterr().out


def test_a_rank_above_the_number_of_samples_is_refused(run):
    swag, before = run.swag[7], run.model.get_weights()
    message = r"`rank` must not be .* Received: rank=7, after 6 samples"
    with pytest.raises(ValueError, match=message), swag.sample():
        pass
    with pytest.raises(ValueError, match=message):
        swag.predict(X, verbose=0)
    assert equal(run.model.get_weights(), before)


@pytest.mark.parametrize("scale", [-1, float("nan"), "1"])
def test_a_bad_scale_is_refused(scale, run):
    message = "`scale` must"
    with pytest.raises(ValueError, match=message), run.swag[2].sample(scale):
        pass


def test_a_bad_number_of_samples_is_refused(run):
    with pytest.raises(ValueError, match="`samples` must be an integer >= 1"):
        run.swag[2].predict(X, samples=0)


def test_predict_needs_a_model():
    with pytest.raises(ValueError, match="needs a model"):
        SWAG().predict(X)
