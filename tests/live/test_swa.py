"""SWA, and what it shares with LAWA and SWAG: samples at the ends of epochs."""

import warnings
from typing import Any, NamedTuple

import keras
import models
import numpy
import pytest
import reference
import reused
from models import BATCH, InOrder, Samples, compiled, data, equal

from keras_wavg import (
    EMA,
    LAWA,
    SWA,
    SWAG,
    Lookahead,
    SwitchEMA,
    update_bn,
)

X, Y = data(6)
VALIDATION = data(2, seed=1)
LIMIT = 1e-6
MEANS = {"SWA": SWA, "LAWA": LAWA, "SWAG": SWAG}


@pytest.fixture
def dense():
    return reused.dense()


@pytest.fixture
def batch_norm():
    return reused.batch_norm()


def fit(model, *callbacks, epochs=6, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def all_methods(**options):
    """One average of each class; the first one is swapped in."""
    swapped, *others = MEANS.values()
    return [swapped(**options), *(o(swap=False, **options) for o in others)]


def assert_mean(average, samples):
    expected = reference.mean(samples)
    assert reference.relative_error(average.get_weights(), expected) < LIMIT


def ends(samples, every=6):
    """The samples at the ends of epochs of `every` batches."""
    return samples.weights[every - 1 :: every]


def test_the_average_is_the_mean_of_the_weights_at_the_ends_of_epochs():
    """With a model that the first batch builds."""
    means, samples = all_methods(), Samples()
    fit(compiled(models.Subclassed()), samples, *means)
    for swa in means:
        assert_mean(swa, ends(samples))


def test_all_methods_are_averaged_in_one_fit(dense):
    samples = Samples()
    averages = [SWA(swap=False), LAWA(2, swap=False), SWAG(swap=False)]
    fit(dense, samples, *averages, EMA(0.9))
    for average, count in zip(averages, [6, 2, 6], strict=True):
        assert_mean(average, ends(samples)[-count:])


# All methods sample at the same times. Most cases use LAWA, for which
# TensorFlow compiles nothing.
TIMES = [
    (SWA, {"start_epoch": 1, "every_epochs": 2}),
    (SWAG, {"start_epoch": 3, "every_epochs": 3}),
    (LAWA, {"start_epoch": 0, "every_epochs": 2}),
    (LAWA, {"start_epoch": 1, "every_epochs": 1}),
    (LAWA, {"start_epoch": 1, "every_epochs": 2}),
    (LAWA, {"start_epoch": 3, "every_epochs": 3}),
    (SWA, {"start_epoch": 2, "every_steps": 4}),
    (SWAG, {"start_epoch": 2, "every_steps": 4}),
    (LAWA, {"start_epoch": 0, "every_steps": 4}),
    (LAWA, {"start_epoch": 2, "every_steps": 4}),
]


def test_weights_are_sampled_every_k_epochs_or_steps_from_the_start(dense):
    means = [
        average(**times, swap=n == 0, name=f"mean-{n}")
        for n, (average, times) in enumerate(TIMES)
    ]
    samples = Samples()
    fit(dense, samples, *means)
    for swa in means:
        if swa.every_steps:
            counted = samples.weights[6 * swa.start_epoch :]
            chosen = counted[swa.every_steps - 1 :: swa.every_steps]
        else:
            chosen = ends(samples)[
                swa.start_epoch + swa.every_epochs - 1 :: swa.every_epochs
            ]
        assert chosen
        assert_mean(swa, chosen)


def test_epochs_of_different_lengths_have_equal_coefficients(dense):
    """With data of unknown length, the last batch is known only after it."""
    means, samples, lengths = all_methods(), Samples(), [2, 7, 4]
    history = []
    for length in lengths:
        history += dense.fit(
            models.generator(length),
            verbose=0,
            validation_data=VALIDATION,
            callbacks=[*means, samples],
        ).history["val_loss"]
    chosen = [samples.weights[n - 1] for n in numpy.cumsum(lengths)]
    for swa in means:
        assert_mean(swa, chosen)
    score = dense.evaluate(*VALIDATION, verbose=0)
    assert score == pytest.approx(history[-1], rel=1e-6)


@pytest.mark.parametrize("average", MEANS)
def test_validation_measures_the_mean_including_its_epoch(dense, average):
    swa, samples = MEANS[average](start_epoch=2), Samples()
    scores = fit(
        dense, samples, swa, epochs=4, validation_data=VALIDATION
    ).history
    for n, score in enumerate(scores["val_loss"]):
        chosen = ends(samples)
        shown = reference.mean(chosen[2 : n + 1]) if n >= 2 else chosen[n]
        dense.set_weights(shown)
        expected = dense.evaluate(*VALIDATION, verbose=0)
        assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"steps_per_execution": 4}, {"run_eagerly": True}, {}],
    ids=str,
)
def test_epochs_are_sampled_however_their_batches_are_run(options):
    if "steps_per_execution" in options and keras.config.backend() == "torch":
        pytest.skip("torch has no `steps_per_execution`")
    means = all_methods()
    optimizer = keras.optimizers.SGD(
        0.05, gradient_accumulation_steps=None if options else 4
    )
    ended = EpochEnds()
    fit(compiled(models.dense(), optimizer, **options), ended, *means)
    for swa in means:
        assert_mean(swa, ended.weights)


class EpochEnds(keras.callbacks.Callback):
    """Records the raw weights after the last batch of each epoch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.latest = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.latest)


def test_epochs_are_counted_across_fits(dense):
    means, samples = all_methods(start_epoch=3), Samples()
    with pytest.warns(
        UserWarning, match=r"2 epochs.*start_epoch=3, every_epochs=1"
    ):
        fit(dense, samples, *means, epochs=2)
    # Before the start the model holds raw weights, and there is no average.
    assert equal(dense.get_weights(), samples.weights[-1])
    for swa in means:
        with pytest.raises(ValueError, match="start_epoch=3"):
            swa.get_weights()
    fit(dense, samples, *means, epochs=3)
    for swa in means:
        assert_mean(swa, ends(samples)[3:])


def test_epochs_before_the_initial_epoch_are_counted(dense):
    lawa, samples = LAWA(start_epoch=5), Samples()
    fit(dense, samples, lawa, initial_epoch=4, epochs=8)
    assert_mean(lawa, ends(samples)[1:])


class Stop(keras.callbacks.Callback):
    """Stops training in the middle of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 3):
            self.model.stop_training = True


def test_an_epoch_that_is_stopped_early_is_sampled_where_it_stops(dense):
    lawa, ended = LAWA(), EpochEnds()
    history = fit(
        dense, Stop(), ended, lawa, validation_data=VALIDATION
    ).history
    assert len(ended.weights) == 3
    assert_mean(lawa, ended.weights)
    score = dense.evaluate(*VALIDATION, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(score, rel=1e-6)


class EvaluateInMidEpoch(keras.callbacks.Callback):
    """Evaluates the average after two batches of each epoch."""

    def __init__(self, average):
        super().__init__()
        # Keras does not set the model of callbacks in a given `CallbackList`.
        own = keras.callbacks.CallbackList([average])
        self.callbacks = {1: [average], 3: own}

    def on_train_batch_end(self, batch, logs=None):
        if batch in self.callbacks:
            callbacks = self.callbacks[batch]
            self.model.evaluate(X, Y, verbose=0, callbacks=callbacks)


def test_an_evaluation_in_mid_epoch_does_not_end_it(dense):
    lawa, samples = LAWA(), Samples()
    fit(dense, samples, EvaluateInMidEpoch(lawa), lawa, epochs=3)
    assert_mean(lawa, ends(samples))


class SetNaN(keras.callbacks.Callback):
    """Sets an element of a weight to NaN at the end of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 3:
            self.before = self.before or self.model.get_weights()
            with_nan = [w.copy() for w in self.before]
            with_nan[0][0, 0] = numpy.nan
            self.model.set_weights(with_nan)

    before = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (4, 0):
            self.model.set_weights(self.before)


def test_an_element_that_is_nan_after_an_epoch_is_skipped(dense):
    means, samples = all_methods(), Samples()
    with pytest.warns(UserWarning, match="elements that are NaN or infinite"):
        fit(dense, InOrder(SetNaN(), samples, *means[::-1]))
    chosen = ends(samples)
    moving = reference.average_of_finite(chosen, lambda n: 1 / n)
    for swa in means:
        received = swa.get_weights()
        assert reference.relative_error(received[1:], moving[1:]) < LIMIT
        assert numpy.isfinite(received[0]).all()
    for swa in (means[0], means[2]):
        assert reference.relative_error(swa.get_weights(), moving) < LIMIT


def test_in_a_custom_training_loop_an_update_ends_an_epoch(dense):
    means, walk = all_methods(start_epoch=1), []
    for swa in means:
        swa.set_model(dense)
    for _ in range(4):
        dense.train_on_batch(X[:BATCH], Y[:BATCH])
        walk.append(dense.get_weights())
        for swa in means:
            swa.update()
    for swa in means:
        assert_mean(swa, walk[1:])


def test_in_a_custom_training_loop_an_update_may_be_a_step(dense):
    walk, lawa = [], LAWA(every_steps=2)
    lawa.set_model(dense)
    for _ in range(6):
        dense.train_on_batch(X[:BATCH], Y[:BATCH])
        lawa.update()
        walk.append(dense.get_weights())
    assert_mean(lawa, walk[1::2])


class ReadAverages(keras.callbacks.Callback):
    """Reads the averaged weights at the end of each epoch."""

    def __init__(self, averages):
        super().__init__()
        self.averages = averages

    def on_epoch_end(self, epoch, logs=None):
        for average in self.averages:
            average.get_weights()


class Measured(NamedTuple):
    model: Any
    means: list[Any]
    samples: Samples
    shown: list[numpy.ndarray]
    scores: list[float]
    warnings: list[Any]


@pytest.fixture(scope="module")
def measured():
    """A training with measured statistics; the model holds raw weights."""
    model, samples = compiled(models.batch_norm()), Samples()
    means = all_methods(batch_norm_data=X)
    callbacks = [samples, *means, ReadAverages(means)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(
            model, *callbacks, epochs=3, validation_data=VALIDATION
        ).history
    shown = model.get_weights()
    means[0].restore()
    return Measured(model, means, samples, shown, history["val_loss"], caught)


def test_training_is_unchanged_and_raw_weights_are_restored(measured):
    plain, alone = compiled(models.batch_norm()), Samples()
    fit(plain, alone, epochs=3, validation_data=VALIDATION)
    assert measured.samples.losses == alone.losses
    assert equal(measured.model.get_weights(), plain.get_weights())


def test_measured_statistics_are_those_of_the_averaged_weights(measured):
    twin = models.batch_norm()
    twin.set_weights(reference.mean(ends(measured.samples)))
    update_bn(twin, X, verbose=0)
    for average in measured.means:
        received = average.get_weights()
        assert reference.relative_error(received, twin.get_weights()) < 1e-5


def test_the_model_and_its_validation_use_measured_statistics(measured):
    swapped, model = measured.means[0], measured.model
    assert equal(swapped.get_weights(), measured.shown)
    with swapped.applied():
        score = model.evaluate(*VALIDATION, verbose=0)
    assert measured.scores[-1] == pytest.approx(score, rel=1e-6)


def test_get_weights_returns_measured_statistics(measured):
    model, raw = measured.model, measured.model.get_weights()
    for average in measured.means:
        weights = average.get_weights()
        assert equal(model.get_weights(), raw)
        with average.applied():
            assert equal(model.get_weights(), weights)
        assert equal(average.get_weights(), weights)


def test_measuring_statistics_does_not_warn(measured):
    categories = {warning.category for warning in measured.warnings}
    assert not any(issubclass(c, UserWarning) for c in categories)


class CountedData:
    """Data that counts its passes."""

    def __init__(self):
        self.count = 0

    def data(self):
        passes = self

        class Counted(keras.utils.PyDataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                passes.count += index == 3  # Keras reads the first ones twice.
                return X[index * BATCH : (index + 1) * BATCH]

        return Counted()


def test_statistics_are_measured_once_for_each_evaluated_average(
    batch_norm,
):
    passes = CountedData()
    swa = SWA(start_epoch=2, batch_norm_data=passes.data())
    fit(batch_norm, swa, validation_data=VALIDATION, validation_freq=3)
    # After epochs 2 (the first average) and 5.
    assert passes.count == 2
    batch_norm.evaluate(X, Y, verbose=0, callbacks=[swa])
    swa.restore()
    swa.apply()
    with swa.applied():
        pass
    assert passes.count == 2
    fit(batch_norm, swa, epochs=1)
    assert passes.count == 3


def test_batch_norm_data_must_be_repeatable():
    with pytest.raises(ValueError, match=r"iterated several times.*generator"):
        SWA(batch_norm_data=models.generator(3))


def test_batch_norm_data_needs_batch_normalization(dense):
    before = dense.get_weights()
    with pytest.raises(ValueError, match="BatchNormalization"):
        fit(dense, SWA(batch_norm_data=X))
    assert equal(dense.get_weights(), before)


def test_batch_norm_data_needs_an_include_that_matches_statistics(batch_norm):
    with pytest.raises(ValueError, match=r"`include` must match .*moving_mean"):
        fit(batch_norm, SWA(batch_norm_data=X, include="kernel"))


@pytest.mark.parametrize(
    ("average", "arguments", "message"),
    [
        (SWA, {"start_epoch": -1}, "`start_epoch` must be an integer >= 0"),
        (SWA, {"every_epochs": 0}, "`every_epochs` must be an integer >= 1"),
        (SWA, {"every_steps": 0}, "`every_steps` must be an integer >= 1"),
        (
            SWA,
            {"every_epochs": 2, "every_steps": 3},
            "Only one of `every_epochs` and",
        ),
        (SWA, {"device": "gpu"}, "`device` must be"),
        (SWA, {"include": "("}, "`include` must be a valid regular"),
        (LAWA, {"window": 0}, "`window` must be an integer >= 1.*window=0"),
        (LAWA, {"window": 2.5}, "`window` must be an integer >= 1.*window=2.5"),
        (SWAG, {"rank": 1}, "`rank` must be an integer >= 2.*rank=1"),
        (SWAG, {"name": "a/b"}, "`name` must be a string of letters"),
        (
            Lookahead,
            {"every_steps": 0},
            "`every_steps` must be an integer >= 1",
        ),
        (Lookahead, {"alpha": 0.0}, r"`alpha` must be in the range \(0, 1\]"),
        (Lookahead, {"alpha": 1.5}, r"`alpha` must be in the range \(0, 1\]"),
        (
            SwitchEMA,
            {"switch_every_steps": 0},
            "`switch_every_steps` must be an integer >= 1",
        ),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(average, arguments, message):
    with pytest.raises(ValueError, match=message):
        average(**arguments)
