"""BEMA through `model.fit`, against the definition in float64."""

import itertools

import h5py
import keras
import models
import numpy
import probe
import pytest
import reference
from models import (
    BATCH,
    FILES,
    Samples,
    Steps,
    compiled,
    data,
    equal,
    fresh,
    save,
)

from keras_wavg import EMA, LAWA
from keras_wavg.callbacks.bema import BEMA

X, Y = data()
VALIDATION = data(2, seed=1)
LIMIT = 1e-6


def fit(model, *callbacks, epochs=5, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def moves(model):
    """Of each weight, whether gradients train it."""
    return [variable.trainable for variable in model.weights]


def defined(bema, samples, trained, before=0):
    """The average by its definition, after so many of the samples."""
    names = ["every", "start", "ema_power", "bias_power", "lag", "multiplier"]
    return reference.bema(
        samples.weights[: len(samples.weights) - before],
        [samples.initial, *samples.weights][bema.start],
        trained=trained,
        **{name: getattr(bema, name) for name in names},
    )


def assert_average(bema, samples):
    expected = defined(bema, samples, moves(bema.model))
    assert reference.relative_error(bema.get_weights(), expected) < LIMIT
    # It is no accident that they are near.
    raw = samples.weights[-1]
    assert reference.relative_error(raw, expected) > 100 * LIMIT


@pytest.mark.parametrize("kind", [k for k in models.KINDS if k != "lazy"])
def test_fifty_steps_give_the_average_of_the_definition(kind):
    model, samples, bema = models.KINDS[kind](), Samples(), BEMA(every=7)
    model(X[:1])
    fit(compiled(model), samples, bema)
    assert len(samples.weights) == 50
    assert_average(bema, samples)


@pytest.mark.parametrize(
    "options",
    [
        {"ema_power": 0.9, "bias_power": 0.05},
        {"ema_power": 0},
        {"bias_power": 0},
        {"bias_power": 50},
        {"lag": 1},
        {"lag": 1e4},
        {"multiplier": 0},
        {"multiplier": 7.5, "lag": 2.5},
    ],
    ids=str,
)
def test_every_coefficient_is_as_defined(options):
    samples, bema = Samples(), BEMA(every=3, **options)
    fit(compiled(models.dense()), samples, bema)
    expected = defined(bema, samples, moves(bema.model))
    assert reference.relative_error(bema.get_weights(), expected) < LIMIT


@pytest.mark.parametrize(
    ("every", "start"), [(1, 0), (1, 17), (4, 3), (4, 10), (7, 0), (7, 20)]
)
def test_only_every_kth_step_from_the_start_counts(every, start):
    samples, bema = Samples(), BEMA(every, start=start)
    fit(compiled(models.dense()), samples, bema)
    assert_average(bema, samples)


def test_the_first_update_of_the_default_is_the_one_of_the_paper():
    """From 0 to 1: a share of the way, and more of it for the lag."""
    model, bema = models.dense(), BEMA()
    model.set_weights([w * 0 for w in model.get_weights()])
    bema.set_model(model)
    model.set_weights([w + 1 for w in model.get_weights()])
    for _ in range(399):
        bema.update()
    with pytest.raises(ValueError, match="no average before the first update"):
        bema.get_weights()
    bema.update()
    for average in bema.get_weights():
        assert average == pytest.approx(410**-0.5 + 410**-0.2, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}],
    ids=str,
)
def test_averages_are_the_same_however_the_step_is_compiled(options):
    if options.get("jit_compile") and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    samples, bema = Samples(), BEMA(every=4, start=6)
    fit(compiled(models.batch_norm(), **options), samples, bema)
    assert_average(bema, samples)


def test_training_is_left_as_it_is_and_the_raw_weights_come_back():
    samples, bema = Samples(), BEMA(every=4)
    model = compiled(models.batch_norm())
    fit(model, samples, bema, validation_data=VALIDATION)
    assert equal(model.get_weights(), bema.get_weights())
    bema.restore()
    alone, plain = Samples(), compiled(models.batch_norm())
    fit(plain, alone, validation_data=VALIDATION)
    assert samples.losses == alone.losses
    assert equal(model.get_weights(), plain.get_weights())


def test_validation_measures_the_average_and_so_does_what_comes_after():
    samples, bema, model = Samples(), BEMA(every=4), compiled(models.dense())
    scores = fit(model, samples, bema, validation_data=VALIDATION).history
    twin, trained = compiled(models.dense()), moves(model)
    for epoch, score in enumerate(scores["val_loss"], 1):
        shown = defined(bema, samples, trained, before=50 - 10 * epoch)
        twin.set_weights(shown)
        expected = twin.evaluate(*VALIDATION, verbose=0)
        assert score == pytest.approx(expected, rel=1e-5)
    assert model.evaluate(*VALIDATION, verbose=0) == pytest.approx(score)


def test_before_the_first_update_the_model_is_raw():
    model, bema, plain = models.dense(), BEMA(), compiled(models.dense())
    with pytest.warns(UserWarning, match="made no average.*every=400"):
        fit(compiled(model), bema, epochs=1)
    fit(plain, epochs=1)
    assert equal(model.get_weights(), plain.get_weights())


def test_optimizer_steps_count_and_not_accumulated_batches():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    samples, bema = Steps(), BEMA(every=3)
    fit(compiled(models.dense(), optimizer), samples, bema)
    # `Steps` has the weights before the first batch, and none without a step.
    assert len(samples.weights) == 12
    assert_average(bema, samples)


def test_groups_of_steps_are_counted_as_what_they_are():
    if keras.config.backend() == "torch":
        pytest.skip("torch has no groups of steps")
    model, bema, samples = models.dense(), BEMA(every=4), Samples()
    fit(compiled(model, steps_per_execution=2), bema, epochs=2)
    fit(compiled(models.dense()), samples, epochs=2)
    expected = defined(bema, samples, moves(model))
    assert reference.relative_error(bema.get_weights(), expected) < LIMIT


def test_loops_without_fit_are_averaged_as_defined():
    model, bema, samples = compiled(models.batch_norm()), BEMA(3), Samples()
    bema.set_model(model)
    samples.initial = model.get_weights()
    for _ in range(20):
        model.train_on_batch(X[:BATCH], Y[:BATCH])
        samples.weights.append(model.get_weights())
        bema.update()
    assert_average(bema, samples)
    with bema.applied():
        assert equal(model.get_weights(), bema.get_weights())
    assert equal(model.get_weights(), samples.weights[-1])


def test_it_rides_along_with_another_average():
    model, samples = compiled(models.dense()), Samples()
    rider = BEMA(every=5, start=10, swap=False)
    fit(model, samples, EMA(0.9), rider)
    assert rider.name == "bema_riding"
    assert_average(rider, samples)


def test_what_is_not_included_stays_raw():
    model, samples = compiled(models.dense()), Samples()
    bema = BEMA(every=4, include="kernel$")
    fit(model, samples, bema)
    averages = defined(bema, samples, moves(model))
    for weight, received, average, raw in zip(
        model.weights,
        bema.get_weights(),
        averages,
        samples.weights[-1],
        strict=True,
    ):
        expected = average if weight.path.endswith("kernel") else raw
        assert reference.relative_error([received], [expected]) < LIMIT


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("options", [{}, {"bias_power": 2.5}], ids=str)
def test_its_profile_tells_how_old_it_is(start, options):
    """Weights that say what time it is have an average that says so too."""
    model, bema = models.dense(), BEMA(every=3, start=start, **options)
    ones = [numpy.ones_like(w) for w in model.get_weights()]
    model.set_weights([w * 0 for w in ones])
    bema.set_model(model)
    for step in range(1, 41):
        model.set_weights([w * step for w in ones])
        bema.update()
    profile = bema.profile()
    assert profile.shares.sum() == pytest.approx(1)
    assert profile.times.tolist() == [start, *range(start + 3, 41, 3)]
    for average in bema.get_weights():
        assert 40 - profile.mean_age == pytest.approx(average, rel=1e-6)


# What no gradient trains


def test_frozen_weights_stay_what_they_are():
    model, samples, bema = models.batch_norm(), Samples(), BEMA(every=4)
    model.layers[0].trainable = False
    frozen = model.layers[0].get_weights()
    fit(compiled(model), samples, bema)
    assert equal(bema.get_weights()[:2], frozen)
    assert_average(bema, samples)


def test_layers_frozen_between_two_fits_are_corrected_while_they_train():
    model, samples, bema = models.batch_norm(), Samples(), BEMA(every=4)
    fit(compiled(model), samples, bema, epochs=2)
    assert_average(bema, samples)
    for frozen in (True, False):
        model.layers[0].trainable = not frozen
        model.layers[1].trainable = not frozen
        fit(compiled(model), samples, bema, epochs=2)
        assert moves(model)[:4] == [not frozen] * 4
        assert_average(bema, samples)


def test_moving_statistics_are_averaged_without_the_correction():
    """From 1 to 0: what the weights' formula gives is less than nothing."""
    model, bema = models.batch_norm(), BEMA(every=1, lag=1, ema_power=0.1)
    bema.set_model(model)
    model.set_weights([w * 0 for w in model.get_weights()])
    for _ in range(3):
        bema.update()
    averages = dict(
        zip([w.name for w in model.weights], bema.get_weights(), strict=True)
    )
    expected = (1 - 2**-0.1) * (1 - 3**-0.1) * (1 - 4**-0.1)
    assert averages["moving_variance"] == pytest.approx(expected, rel=1e-5)
    assert (averages["gamma"] < 0).all()


# Numbers


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_averaged_as_defined(policy):
    keras.config.set_dtype_policy(policy)
    # float16 training skips the steps whose gradients overflow, and only the
    # device knows which: an update every few steps may come some steps late.
    samples, bema = Steps(), BEMA(every=1)
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.01))
    fit(model, samples, bema)
    assert len(samples.weights) > 20
    assert_average(bema, samples)


def test_half_precision_weights_are_averaged_in_float32():
    keras.config.set_dtype_policy("bfloat16")
    samples, bema = Samples(), BEMA(every=4)
    model = compiled(models.dense(), keras.optimizers.SGD(0.05))
    fit(model, samples, bema)
    assert {w.dtype for w in bema.get_weights()} == {numpy.dtype("float32")}
    assert_average(bema, samples)
    bema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_float64_weights_are_averaged_in_float64():
    if keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only where jax_enable_x64 is set")
    keras.config.set_dtype_policy("float64")
    samples, bema = Samples(), BEMA(every=4)
    fit(compiled(models.dense()), samples, bema)
    expected = defined(bema, samples, moves(bema.model))
    assert reference.relative_error(bema.get_weights(), expected) < 1e-13


class Poison(keras.callbacks.Callback):
    """Has a weight be NaN after some batches, and gives it back."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        if batch in self.batches:
            self.weights = self.model.get_weights()
            poisoned = [w.copy() for w in self.weights]
            poisoned[2][0] = numpy.nan
            self.model.set_weights(poisoned)

    def on_train_batch_begin(self, batch, logs=None):
        if batch - 1 in self.batches:
            self.model.set_weights(self.weights)


def test_an_update_at_which_a_weight_is_nan_is_left_out():
    """Of the steps 2, 4, 6, 8 and 10, the fourth and the sixth."""
    samples, bema = Samples(), BEMA(every=2)
    with pytest.warns(UserWarning, match="left out 2 updates"):
        fit(compiled(models.dense()), samples, Poison(3, 5, 6), bema, epochs=1)
    assert bema.skipped == 2
    ema = first = [w.astype("float64") for w in samples.initial]
    for step in (2, 8, 10):
        weights = samples.weights[step - 1]
        share = (10 + step) ** -0.5
        ema = [e + share * (w - e) for e, w in zip(ema, weights, strict=True)]
    expected = [
        e + 20**-0.2 * (w - f)
        for e, w, f in zip(ema, weights, first, strict=True)
    ]
    assert reference.relative_error(bema.get_weights(), expected) < LIMIT


# From one `fit` to the next


def test_a_second_fit_goes_on_with_the_average():
    model, samples, bema = compiled(models.dense()), Samples(), BEMA(every=7)
    for _ in range(3):
        fit(model, samples, bema, epochs=1)
    assert_average(bema, samples)


def test_other_weights_begin_a_new_average():
    model, samples, bema = compiled(models.dense()), Samples(), BEMA(every=4)
    fit(model, bema, epochs=1)
    model.set_weights([w * 0.5 for w in model.get_weights()])
    fit(model, samples, bema, epochs=2)
    assert_average(bema, samples)


# Files

MOMENTS = {
    "before the start": {"start": 25},
    "at the start": {"start": 20},
    "before the first update": {"every": 25},
    "at an update": {"every": 5},
    "between two updates": {"every": 7},
    "riding": {"every": 7, "swap": False},
    "include": {"every": 7, "include": "kernel"},
}


def snapshot(model, bema):
    """Raw weights, optimizer, averages and counts, the average taken out."""
    bema.restore()
    found = [v.value for v in [*model.weights, *model.optimizer.variables]]
    if probe.has_begun(bema):
        found += probe.tensors(bema)
        found += itertools.chain(*probe.kept(bema).values())
    counts = numpy.array(probe.counts(bema))
    return [*map(keras.ops.convert_to_numpy, found), counts]


@pytest.mark.parametrize(
    ("moment", "file"),
    [
        *zip(MOMENTS, itertools.cycle(FILES)),
        *(("between two updates", file) for file in FILES[::2]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*made no average")
def test_a_loaded_model_goes_on_as_the_saved_one(moment, file, tmp_path):
    model, bema = compiled(models.dense()), BEMA(**MOMENTS[moment])
    fit(model, bema, epochs=2)
    path = save(model, tmp_path / file)
    shown = model.get_weights()
    again = BEMA(**MOMENTS[moment])
    other = fresh(models.dense, again)
    other.load_weights(path)
    assert equal(other.get_weights(), shown)
    assert equal(snapshot(other, again), snapshot(model, bema))
    fit(model, bema)
    fit(other, again)
    assert equal(other.get_weights(), model.get_weights())
    assert equal(snapshot(other, again), snapshot(model, bema))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("in_model", [True, False])
def test_each_dtype_comes_back_bit_for_bit(policy, in_model, tmp_path):
    keras.config.set_dtype_policy(policy)
    model, bema = compiled(models.batch_norm()), BEMA(every=7)
    fit(model, bema)
    if not in_model:
        bema.restore()
    path = save(model, tmp_path / "a.weights.h5")
    again = BEMA(every=7)
    other = fresh(models.batch_norm, again)
    other.load_weights(path)
    assert probe.is_in_model(again) == in_model
    assert equal(snapshot(other, again), snapshot(model, bema))


@pytest.mark.parametrize("in_model", [True, False])
def test_a_file_grows_by_three_copies_of_the_weights(in_model, tmp_path):
    model, bema = compiled(models.batch_norm()), BEMA(every=7)
    fit(model, bema)
    if not in_model:
        bema.restore()
    path = save(model, tmp_path / "a.weights.h5")
    with h5py.File(path) as file:
        stored = file["~wavg_bema/vars"].values()
        size = sum(array.nbytes for array in stored if array.shape)
    assert size == 3 * sum(w.nbytes for w in model.get_weights())


class Killed(BaseException):
    """The process ends."""


class Kill(keras.callbacks.Callback):
    """Ends the run in the midst of its third epoch."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.where, self.epoch, batch) == ("training", 2, 5):
            raise Killed

    def on_test_batch_end(self, batch, logs=None):
        if (self.where, self.epoch) == ("validation", 2):
            raise Killed


@pytest.mark.parametrize(
    ("where", "order", "options"),
    [
        ("training", 1, {}),
        ("training", -1, {"start": 13}),
        ("validation", 1, {"every": 24}),
        ("validation", -1, {}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*made no average")
def test_a_killed_run_ends_as_if_it_had_not_been(
    where, order, options, tmp_path
):
    def run(*callbacks):
        model = compiled(models.nested())
        bema = BEMA(**{"every": 4} | options)
        fit(
            model,
            *[bema, *callbacks[:1]][::order],
            *callbacks[1:],
            validation_data=VALIDATION,
        )
        return snapshot(model, bema)

    expected = run()
    backup = keras.callbacks.BackupAndRestore
    with pytest.raises(Killed):
        run(backup(tmp_path / "backup"), Kill(where))
    resumed = Samples()
    assert equal(run(backup(tmp_path / "backup"), resumed), expected)
    assert len(resumed.weights) == 30


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (EMA(0.9, name="bema"), "no 'initial_0' for '.*kernel'"),
        (LAWA(name="bema"), "no 'initial_0' for '.*kernel'"),
    ],
    ids=["EMA", "LAWA"],
)
def test_the_average_of_another_method_is_refused(writer, message, tmp_path):
    model = compiled(models.dense())
    fit(model, writer)
    path = save(model, tmp_path / "a.weights.h5")
    other = fresh(models.dense, BEMA())
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        other.load_weights(path)
    assert equal(other.get_weights(), before)


def test_a_file_without_its_moving_average_is_refused(tmp_path):
    model, bema = compiled(models.dense()), BEMA(every=7)
    fit(model, bema)
    path = save(model, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["~wavg_bema/vars/ema_1"]
    averages = bema.get_weights()
    with pytest.raises(ValueError, match=r"no 'ema_1' for '.*bias'"):
        model.load_weights(path)
    assert equal(bema.get_weights(), averages)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "`every` must be an integer >= 1. Received: every=0"),
        ({"every": 2.5}, "`every` must be an integer >= 1"),
        ({"start": -1}, "`start` must be an integer >= 0"),
        ({"ema_power": -0.5}, "`ema_power` must be a finite number >= 0"),
        ({"ema_power": "0.5"}, "Received: ema_power='0.5'"),
        ({"bias_power": float("nan")}, "Received: bias_power=nan"),
        ({"lag": 0.5}, "`lag` must be a finite number >= 1. Received: lag=0.5"),
        ({"multiplier": float("inf")}, "Received: multiplier=inf"),
        ({"include": "("}, "`include` must be a valid regular expression"),
        ({"name": "a/b"}, "`name` must be a string of letters"),
    ],
    ids=str,
)
def test_an_argument_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BEMA(**options)


def test_a_model_that_is_not_built_is_refused():
    bema = BEMA(every=1)
    bema.set_model(models.lazy())
    with pytest.raises(ValueError, match="needs a model that is built"):
        bema.update()
