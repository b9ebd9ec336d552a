"""SWA, and what it shares with LAWA and SWAG: samples at the ends of epochs."""

import warnings

import keras
import models
import numpy
import pytest
import reference
from models import BATCH, Samples, compiled, data, equal

from keras_wavg import EMA, LAWA, SWA, SWAG, Lookahead, update_bn

X, Y = data(6)
VALIDATION = data(2, seed=1)
LIMIT = 1e-6
MEANS = {"SWA": SWA, "LAWA": LAWA, "SWAG": SWAG}


def fit(model, *callbacks, epochs=6, **options):
    options = {"batch_size": BATCH, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def all_methods(**options):
    """One of each, of which the first is swapped in."""
    swapped, *riders = MEANS.values()
    return [swapped(**options), *(r(swap=False, **options) for r in riders)]


def assert_mean(average, samples):
    expected = reference.mean(samples)
    assert reference.relative_error(average.get_weights(), expected) < LIMIT


def ends(samples, every=6):
    """The samples at the ends of epochs of so many batches."""
    return samples.weights[every - 1 :: every]


@pytest.mark.parametrize(
    ("average", "kind"),
    [
        *(("SWA", kind) for kind in models.KINDS),
        ("LAWA", "lazy"),
        ("SWAG", "subclassed"),
    ],
)
def test_the_mean_of_the_weights_at_the_ends_of_epochs(average, kind):
    swa, samples = MEANS[average](), Samples()
    fit(compiled(models.KINDS[kind]()), samples, swa)
    assert_mean(swa, ends(samples))


@pytest.mark.parametrize(
    ("average", "start_epoch", "every"),
    [
        ("SWA", 0, 2),
        ("SWA", 1, 1),
        ("SWA", 1, 2),
        ("SWA", 3, 3),
        ("LAWA", 1, 2),
        ("SWAG", 3, 3),
    ],
)
def test_every_kth_epoch_from_the_start_counts(average, start_epoch, every):
    swa, samples = (
        MEANS[average](start_epoch=start_epoch, every=every),
        Samples(),
    )
    fit(compiled(models.dense()), samples, swa)
    chosen = ends(samples)[start_epoch + every - 1 :: every]
    assert chosen
    assert_mean(swa, chosen)


@pytest.mark.parametrize("start_epoch", [0, 2])
def test_every_kth_step_from_the_start_epoch_counts(start_epoch):
    means = all_methods(start_epoch=start_epoch, every_steps=4)
    samples = Samples()
    fit(compiled(models.dense()), samples, *means)
    for swa in means:
        assert_mean(swa, samples.weights[6 * start_epoch :][3::4][-10:])


def test_lawa_forgets_all_but_the_latest():
    lawa, samples = LAWA(window=3), Samples()
    fit(compiled(models.batch_norm()), samples, lawa)
    assert_mean(lawa, ends(samples)[-3:])


def test_samples_count_alike_whatever_the_lengths_of_their_epochs():
    """Of unknown length: nobody can tell the last batch before it is over."""
    means, samples, lengths = all_methods(), Samples(), [2, 7, 4]
    model, history = compiled(models.dense()), []
    for length in lengths:
        history += model.fit(
            models.generator(length),
            verbose=0,
            validation_data=VALIDATION,
            callbacks=[*means, samples],
        ).history["val_loss"]
    chosen = [samples.weights[n - 1] for n in numpy.cumsum(lengths)]
    for swa in means:
        assert_mean(swa, chosen)
    score = model.evaluate(*VALIDATION, verbose=0)
    assert score == pytest.approx(history[-1], rel=1e-6)


@pytest.mark.parametrize("average", MEANS)
def test_validation_measures_the_mean_that_counts_its_epoch(average):
    swa, samples = MEANS[average](start_epoch=2), Samples()
    model = compiled(models.dense())
    scores = fit(
        model, samples, swa, validation_data=VALIDATION, shuffle=False
    ).history["val_loss"]
    twin = compiled(models.dense())
    for n, score in enumerate(scores):
        chosen = ends(samples)
        shown = reference.mean(chosen[2 : n + 1]) if n >= 2 else chosen[n]
        twin.set_weights(shown)
        expected = twin.evaluate(*VALIDATION, verbose=0)
        assert score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("average", ["SWA", "SWAG"])
def test_training_is_left_as_it_is_and_the_raw_weights_come_back(average):
    samples, swa = Samples(), MEANS[average](bn_data=X)
    model = compiled(models.batch_norm())
    fit(model, samples, swa, validation_data=VALIDATION)
    swa.restore()
    alone, plain = Samples(), compiled(models.batch_norm())
    fit(plain, alone, validation_data=VALIDATION)
    assert samples.losses == alone.losses
    assert equal(model.get_weights(), plain.get_weights())


def test_a_start_that_is_never_reached_is_warned_of():
    swa, model = SWA(start_epoch=6), compiled(models.dense())
    with pytest.warns(UserWarning, match=r"6 epochs.*start_epoch=6, every=1"):
        fit(model, swa)
    plain = compiled(models.dense())
    fit(plain)
    assert equal(model.get_weights(), plain.get_weights())
    with pytest.raises(ValueError, match="start_epoch=6"):
        swa.get_weights()


@pytest.mark.parametrize(
    "options",
    [{"steps_per_execution": 4}, {"run_eagerly": True}, {}],
    ids=str,
)
def test_an_epoch_is_an_epoch_however_its_batches_run(options):
    if "steps_per_execution" in options and keras.config.backend() == "torch":
        pytest.skip("torch runs no groups of batches")
    means = all_methods()
    optimizer = keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=None if options else 4
    )
    ended = EpochEnds()
    fit(compiled(models.dense(), optimizer, **options), ended, *means)
    for swa in means:
        assert_mean(swa, ended.weights)


class EpochEnds(keras.callbacks.Callback):
    """Records the raw weights behind the latest batch of each epoch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.latest = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.latest)


def test_epochs_are_counted_over_all_fits():
    means, samples = all_methods(start_epoch=3), Samples()
    model = compiled(models.dense())
    with pytest.warns(UserWarning, match="no average"):
        fit(model, samples, *means, epochs=2)
    fit(model, samples, *means, epochs=3)
    for swa in means:
        assert_mean(swa, ends(samples)[3:])


def test_an_initial_epoch_counts_for_those_before_it():
    swa, samples = SWA(start_epoch=5), Samples()
    fit(compiled(models.dense()), samples, swa, initial_epoch=4, epochs=8)
    assert_mean(swa, ends(samples)[1:])


class Stop(keras.callbacks.Callback):
    """Stops training in the middle of the third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (2, 3):
            self.model.stop_training = True


def test_an_epoch_that_is_cut_short_ends_where_it_was_cut():
    swa, ended = SWA(), EpochEnds()
    model = compiled(models.dense())
    history = fit(model, Stop(), ended, swa, validation_data=VALIDATION).history
    assert len(ended.weights) == 3
    assert_mean(swa, ended.weights)
    score = model.evaluate(*VALIDATION, verbose=0)
    assert history["val_loss"][-1] == pytest.approx(score, rel=1e-6)


class EvaluateInMidEpoch(keras.callbacks.Callback):
    """Evaluates the average behind the second batch of each epoch."""

    def __init__(self, average):
        super().__init__()
        self.average = average

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            self.model.evaluate(X, Y, verbose=0, callbacks=[self.average])


def test_an_evaluation_in_mid_epoch_does_not_end_it():
    swa, samples = SWA(), Samples()
    fit(compiled(models.dense()), samples, EvaluateInMidEpoch(swa), swa)
    assert_mean(swa, ends(samples))


class Spoil(keras.callbacks.Callback):
    """Makes a weight NaN at the end of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 3:
            self.before = self.before or self.model.get_weights()
            self.model.set_weights([w * numpy.nan for w in self.before])

    before = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (4, 0):
            self.model.set_weights(self.before)


def test_an_epoch_that_ends_in_nan_is_left_out_and_warned_of():
    means, samples = all_methods(), Samples()
    with pytest.warns(UserWarning, match="left out 1 updates"):
        fit(compiled(models.dense(), "sgd"), Spoil(), samples, *means)
    chosen = ends(samples)
    for swa in means:
        assert_mean(swa, [*chosen[:3], *chosen[4:]])
        assert swa.skipped == 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_every_dtype_is_averaged_as_defined(policy):
    if policy == "float64" and keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where jax_enable_x64 is set")
    keras.config.set_dtype_policy(policy)
    means, samples = all_methods(), Samples()
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.01))
    fit(model, samples, *means)
    wide = numpy.dtype("float64" if policy == "float64" else "float32")
    for swa in means:
        assert_mean(swa, ends(samples))
        floats = {w.dtype for w in swa.get_weights() if w.dtype.kind == "f"}
        assert floats == {wide}
    means[0].restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_all_methods_ride_along_in_one_fit():
    samples = Samples()
    riders = [SWA(swap=False), LAWA(2, swap=False), SWAG(swap=False)]
    fit(compiled(models.batch_norm()), samples, *riders, EMA(0.9))
    for rider, count in zip(riders, [6, 2, 6], strict=True):
        assert_mean(rider, ends(samples)[-count:])


def test_without_fit_an_update_is_the_end_of_an_epoch():
    model, walk = compiled(models.dense()), []
    means = all_methods(start_epoch=1)
    for swa in means:
        swa.set_model(model)
    for _ in range(4):
        model.train_on_batch(X, Y)
        walk.append(model.get_weights())
        for swa in means:
            swa.update()
    for swa in means:
        assert_mean(swa, walk[1:])


def test_without_fit_and_with_every_steps_an_update_is_a_step():
    model, walk, swa = compiled(models.dense()), [], SWA(every_steps=2)
    swa.set_model(model)
    for _ in range(6):
        model.train_on_batch(X, Y)
        swa.update()
        walk.append(model.get_weights())
    assert_mean(swa, walk[1::2])


@pytest.mark.parametrize("average", ["SWA", "LAWA"])
def test_with_data_the_statistics_are_those_of_the_averaged_weights(average):
    swa, samples = MEANS[average](bn_data=X), Samples()
    model = compiled(models.batch_norm())
    scores = fit(model, samples, swa, validation_data=VALIDATION).history
    shown = model.get_weights()
    score = model.evaluate(*VALIDATION, verbose=0)
    assert scores["val_loss"][-1] == pytest.approx(score, rel=1e-6)
    assert equal(swa.get_weights(), shown)
    twin = compiled(models.batch_norm())
    twin.set_weights(reference.mean(ends(samples)))
    update_bn(twin, X, verbose=0)
    assert reference.relative_error(shown, twin.get_weights()) < 1e-5
    swa.restore()
    assert equal(model.get_weights(), samples.weights[-1])


class Passes:
    """Data that counts how often it is gone through."""

    def __init__(self):
        self.count = 0

    def data(self):
        passes = self

        class Counted(keras.utils.PyDataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                passes.count += index == 3  # Keras peeks at the first ones.
                return X[index * BATCH : (index + 1) * BATCH]

        return Counted()


def test_statistics_are_measured_once_for_each_average_that_is_evaluated():
    passes = Passes()
    swa = SWA(start_epoch=2, bn_data=passes.data())
    model = compiled(models.batch_norm())
    fit(model, swa, validation_data=VALIDATION, validation_freq=3)
    # After the epochs 2 (the first average), and 5.
    assert passes.count == 2
    model.evaluate(X, Y, verbose=0, callbacks=[swa])
    swa.restore()
    swa.apply()
    with swa.applied():
        pass
    assert passes.count == 2
    fit(model, swa, epochs=1)
    assert passes.count == 3


@pytest.mark.parametrize("average", MEANS)
def test_weights_of_an_average_that_rides_along_have_measured_statistics(
    average,
):
    swa = MEANS[average](bn_data=X, swap=False)
    model = compiled(models.batch_norm())
    fit(model, swa)
    raw, weights = model.get_weights(), swa.get_weights()
    assert equal(model.get_weights(), raw)
    with swa.applied():
        assert equal(model.get_weights(), weights)
    assert equal(swa.get_weights(), weights)


def test_data_for_statistics_must_be_repeatable():
    with pytest.raises(ValueError, match=r"again and again.*\n?.*generator"):
        SWA(bn_data=models.generator(3))


def test_data_for_statistics_need_batch_normalization():
    model = compiled(models.dense())
    before = model.get_weights()
    with pytest.raises(ValueError, match="BatchNormalization"):
        fit(model, SWA(bn_data=X))
    assert equal(model.get_weights(), before)


def test_measured_statistics_must_be_averaged():
    model = compiled(models.batch_norm())
    with pytest.raises(ValueError, match=r"`include` must match .*moving_mean"):
        fit(model, SWA(bn_data=X, include="kernel"))


@pytest.mark.parametrize(
    ("average", "arguments", "message"),
    [
        (SWA, {"start_epoch": -1}, "`start_epoch` must be an integer >= 0"),
        (SWA, {"every": 0}, "`every` must be an integer >= 1"),
        (SWA, {"every_steps": 0}, "`every_steps` must be an integer >= 1"),
        (SWA, {"every": 2, "every_steps": 3}, "Only one of `every` and"),
        (SWA, {"device": "gpu"}, "`device` must be"),
        (SWA, {"include": "("}, "`include` must be a valid regular"),
        (LAWA, {"window": 0}, "`window` must be an integer >= 1.*window=0"),
        (LAWA, {"window": 2.5}, "`window` must be an integer >= 1.*window=2.5"),
        (SWAG, {"rank": 1}, "`rank` must be an integer >= 2.*rank=1"),
        (SWAG, {"name": "a/b"}, "`name` must be a string of letters"),
        (Lookahead, {"every": 0}, "`every` must be an integer >= 1"),
        (Lookahead, {"alpha": 0.0}, r"`alpha` must be in the range \(0, 1\]"),
        (Lookahead, {"alpha": 1.5}, r"`alpha` must be in the range \(0, 1\]"),
        (
            EMA,
            {"overwrite_every": 0},
            "`overwrite_every` must be an integer >= 1",
        ),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(average, arguments, message):
    with pytest.raises(ValueError, match=message):
        average(**arguments)


def test_the_average_is_warned_of_nothing_when_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(compiled(models.batch_norm()), SWA(bn_data=X))
