"""`BEMA` in `model.fit`, compared with its definition in float64."""

from typing import NamedTuple

import h5py
import keras
import models
import numpy
import pytest
import reference
import reused
from models import (
    BATCH,
    FILES,
    InOrder,
    Samples,
    Steps,
    compiled,
    data,
    equal,
    fresh,
    save,
)
from saving import differing, full_state, random_walk, state

from keras_wavg import EMA
from keras_wavg.callbacks.bema import BEMA

X, Y = data()
VALIDATION = data(2, seed=1)
LIMIT = 1e-6


def fit(model, *callbacks, epochs=5, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False} | options
    return model.fit(X, Y, epochs=epochs, callbacks=[*callbacks], **options)


def is_trained(model):
    """For each weight, whether gradients train it."""
    return [variable.trainable for variable in model.weights]


def expected_average(bema, samples, trained, before=0):
    """The average by its definition, without the last `before` samples."""
    names = ["ema_power", "bias_power", "lag", "multiplier"]
    return reference.bema(
        samples.weights[: len(samples.weights) - before],
        [samples.initial, *samples.weights][bema.start_step],
        trained=trained,
        every=bema.every_steps,
        start=bema.start_step,
        **{name: getattr(bema, name) for name in names},
    )


def error(bema, samples):
    expected = expected_average(bema, samples, is_trained(bema.model))
    return reference.relative_error(bema.get_weights(), expected)


def assert_average(bema, samples):
    assert error(bema, samples) < LIMIT
    # The raw weights differ, so the check above means something.
    expected = expected_average(bema, samples, is_trained(bema.model))
    raw = samples.weights[-1]
    assert reference.relative_error(raw, expected) > 100 * LIMIT


# `dense` and `nested` are averaged in tests below.
@pytest.mark.parametrize("kind", ["batch_norm", "shared", "subclassed"])
def test_the_average_of_fifty_steps_is_as_defined(kind):
    model, samples, bema = models.KINDS[kind](), Samples(), BEMA(every_steps=7)
    model(X[:1])
    fit(compiled(model), samples, bema)
    assert len(samples.weights) == 50
    assert_average(bema, samples)


COEFFICIENTS = [
    {"ema_power": 0.9, "bias_power": 0.05},
    {"ema_power": 0},
    {"bias_power": 0},
    {"bias_power": 50},
    {"lag": 1},
    {"lag": 1e4},
    {"multiplier": 0},
    {"multiplier": 7.5, "lag": 2.5},
]
TIMES = [(1, 0), (1, 17), (4, 3), (4, 10), (7, 0), (7, 20)]


class Run(NamedTuple):
    """A training with many averages.

    Args:
        samples: The weights after each step.
        coefficients: Averages with `COEFFICIENTS`.
        times: Averages with `TIMES`.
        kernels: An average of the kernels only.
        unnamed: An average without a `name`.
    """

    samples: Samples
    coefficients: list
    times: list
    kernels: BEMA
    unnamed: BEMA


@pytest.fixture(scope="module")
def run():
    """Averages without `swap`, beside one that is swapped in."""
    keras.config.set_dtype_policy("float32")

    def without_swap(name, *arguments, **options):
        return BEMA(*arguments, **options, name=name, swap=False)

    found = Run(
        Samples(),
        [
            without_swap(f"c{i}", 3, **chosen)
            for i, chosen in enumerate(COEFFICIENTS)
        ],
        [
            without_swap(f"t{i}", k, start_step=start)
            for i, (k, start) in enumerate(TIMES)
        ],
        without_swap("kernels", 4, include="kernel$"),
        BEMA(5, start_step=10, swap=False),
    )
    averages = [*found.coefficients, *found.times, found.kernels, found.unnamed]
    ema = EMA(0.9)
    fit(compiled(models.dense()), found.samples, ema, *averages)
    ema.restore()
    return found


@pytest.mark.parametrize(
    "index", range(len(COEFFICIENTS)), ids=map(str, COEFFICIENTS)
)
def test_the_average_is_as_defined_with_every_coefficient(index, run):
    assert error(run.coefficients[index], run.samples) < LIMIT


@pytest.mark.parametrize("index", range(len(TIMES)), ids=map(str, TIMES))
def test_weights_are_sampled_every_k_steps_from_the_start(index, run):
    assert_average(run.times[index], run.samples)


def test_without_swap_it_is_updated_beside_another_average(run):
    assert run.unnamed.name == "bema"
    assert_average(run.unnamed, run.samples)


def test_excluded_weights_keep_their_raw_values(run):
    model = run.kernels.model
    averages = expected_average(run.kernels, run.samples, is_trained(model))
    for weight, received, average, raw in zip(
        model.weights,
        run.kernels.get_weights(),
        averages,
        run.samples.weights[-1],
        strict=True,
    ):
        expected = average if weight.path.endswith("kernel") else raw
        assert reference.relative_error([received], [expected]) < LIMIT


def test_the_first_update_with_defaults_is_that_of_the_paper():
    """From 0 to 1: the step of the EMA, plus the correction of its lag."""
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
def test_the_average_is_as_defined_however_the_step_is_compiled(options):
    if options.get("jit_compile") and keras.config.backend() == "torch":
        pytest.skip("torch.compile needs a C++ toolchain and a minute")
    samples, bema = Samples(), BEMA(every_steps=4, start_step=6)
    fit(compiled(models.nested(), **options), samples, bema, epochs=2)
    assert_average(bema, samples)


def test_training_is_unchanged_and_raw_weights_are_restored():
    alone = Samples()
    fit(reused.batch_norm(), alone, epochs=2, validation_data=VALIDATION)
    samples, bema, model = Samples(), BEMA(every_steps=4), reused.batch_norm()
    fit(model, samples, bema, epochs=2, validation_data=VALIDATION)
    assert equal(model.get_weights(), bema.get_weights())
    bema.restore()
    assert samples.losses == alone.losses
    assert equal(model.get_weights(), alone.weights[-1])


def test_validation_and_later_evaluations_measure_the_average():
    samples, bema, model = Samples(), BEMA(every_steps=4), reused.dense()
    history = fit(model, samples, bema, epochs=3, validation_data=VALIDATION)
    scores = history.history["val_loss"]
    assert model.evaluate(*VALIDATION, verbose=0) == pytest.approx(scores[-1])
    for epoch, score in enumerate(scores, 1):
        shown = expected_average(
            bema, samples, is_trained(model), before=30 - 10 * epoch
        )
        model.set_weights(shown)
        expected = model.evaluate(*VALIDATION, verbose=0)
        assert score == pytest.approx(expected, rel=1e-5)


def test_before_the_first_update_the_model_holds_the_raw_weights():
    model, bema, samples = reused.dense(), BEMA(), Samples()
    with pytest.warns(UserWarning, match="made no average.*every_steps=400"):
        fit(model, samples, bema, epochs=1)
    assert equal(model.get_weights(), samples.weights[-1])
    plain = reused.dense()
    fit(plain, epochs=1)
    assert equal(plain.get_weights(), samples.weights[-1])


def test_optimizer_steps_are_counted_not_accumulated_batches():
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=4)
    samples, bema = Steps(), BEMA(every_steps=3)
    fit(compiled(models.dense(), optimizer), samples, bema)
    # `Steps` records a batch only if the optimizer made a step.
    assert len(samples.weights) == 12
    assert_average(bema, samples)


def test_with_steps_per_execution_every_step_is_counted():
    if keras.config.backend() == "torch":
        pytest.skip("torch has no `steps_per_execution`")
    model, bema, samples = models.dense(), BEMA(every_steps=4), Samples()
    fit(compiled(model, steps_per_execution=2), bema, epochs=2)
    fit(reused.dense(), samples, epochs=2)
    expected = expected_average(bema, samples, is_trained(model))
    assert reference.relative_error(bema.get_weights(), expected) < LIMIT


def test_in_a_custom_training_loop_the_average_is_as_defined():
    model, bema, samples = reused.batch_norm(), BEMA(3), Samples()
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


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("options", [{}, {"bias_power": 2.5}], ids=str)
def test_the_mean_age_in_the_profile_is_right(start, options):
    """If all weights equal the step, their average is the mean step."""
    model, bema = (
        models.dense(),
        BEMA(every_steps=3, start_step=start, **options),
    )
    ones = [numpy.ones_like(w) for w in model.get_weights()]
    model.set_weights([w * 0 for w in ones])
    bema.set_model(model)
    for step in range(1, 41):
        model.set_weights([w * step for w in ones])
        bema.update()
    profile = bema.profile()
    assert profile.coefficients.sum() == pytest.approx(1)
    assert profile.times.tolist() == [start, *range(start + 3, 41, 3)]
    for average in bema.get_weights():
        assert 40 - profile.mean_age == pytest.approx(average, rel=1e-6)


# Weights without a gradient


def test_layers_are_corrected_only_while_they_are_trained():
    model, samples, bema = models.batch_norm(), Samples(), BEMA(every_steps=4)
    initial = model.get_weights()
    for trainable in (False, True, False):
        model.layers[0].trainable = trainable
        model.layers[1].trainable = trainable
        fit(compiled(model), samples, bema, epochs=1)
        assert is_trained(model)[:4] == [trainable] * 4
        assert_average(bema, samples)
        # The average of weights that never changed is exact.
        stays = equal(bema.get_weights()[:6], initial[:6])
        assert stays is (len(samples.weights) == 10)


def test_moving_statistics_are_averaged_without_the_lag_correction():
    """From 1 to 0: the correction would make a variance negative."""
    model, bema = models.batch_norm(), BEMA(every_steps=1, lag=1, ema_power=0.1)
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
    samples, bema = Steps(), BEMA(every_steps=1)
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.01))
    fit(model, samples, bema)
    assert len(samples.weights) > 20
    assert_average(bema, samples)


def test_half_precision_weights_are_averaged_in_float32():
    keras.config.set_dtype_policy("bfloat16")
    samples, bema = Samples(), BEMA(every_steps=4)
    model = compiled(models.dense(), keras.optimizers.SGD(0.05))
    fit(model, samples, bema)
    assert {w.dtype for w in bema.get_weights()} == {numpy.dtype("float32")}
    assert_average(bema, samples)
    bema.restore()
    assert equal(model.get_weights(), samples.weights[-1])


def test_float64_weights_are_averaged_in_float64():
    if keras.config.backend() == "jax":
        pytest.skip("JAX has float64 only with jax_enable_x64")
    keras.config.set_dtype_policy("float64")
    samples, bema = Samples(), BEMA(every_steps=4)
    fit(compiled(models.dense()), samples, bema)
    expected = expected_average(bema, samples, is_trained(bema.model))
    assert reference.relative_error(bema.get_weights(), expected) < 1e-13


class SetNaN(keras.callbacks.Callback):
    """Sets a weight to NaN after some batches, and restores it."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        if batch in self.batches:
            self.weights = self.model.get_weights()
            with_nan = [w.copy() for w in self.weights]
            with_nan[2][0] = numpy.nan
            self.model.set_weights(with_nan)

    def on_train_batch_begin(self, batch, logs=None):
        if batch - 1 in self.batches:
            self.model.set_weights(self.weights)


def test_an_update_replaces_nan_elements_by_their_average():
    """NaN at steps 4 and 6; updates at steps 2, 4, 6, 8 and 10."""
    samples, bema = Samples(), BEMA(every_steps=2)
    callbacks = InOrder(SetNaN(3, 5, 6), samples, bema)
    fit(reused.dense(), callbacks, epochs=1)
    assert bema.skipped == []
    ema = average = first = [w.astype("float64") for w in samples.initial]
    for step in (2, 4, 6, 8, 10):
        weights = [
            numpy.where(numpy.isfinite(w), w, a)
            for w, a in zip(samples.weights[step - 1], average, strict=True)
        ]
        coefficient = (10 + step) ** -0.5
        ema = [
            e + coefficient * (w - e) for e, w in zip(ema, weights, strict=True)
        ]
        average = [
            e + (10 + step) ** -0.2 * (w - f)
            for e, w, f in zip(ema, weights, first, strict=True)
        ]
    assert reference.relative_error(bema.get_weights(), average) < LIMIT


# Several calls of `fit`


def test_a_second_fit_continues_the_average():
    model, samples, bema = reused.dense(), Samples(), BEMA(every_steps=7)
    for _ in range(3):
        fit(model, samples, bema, epochs=1)
    assert_average(bema, samples)


def test_replaced_weights_restart_the_average():
    model, samples, bema = reused.dense(), Samples(), BEMA(every_steps=4)
    fit(model, bema, epochs=1)
    model.set_weights([w * 0.5 for w in model.get_weights()])
    with pytest.warns(match="restarts: 4 weights"):
        fit(model, samples, bema, epochs=2)
    assert_average(bema, samples)


# Files

# What each average has reached after 20 steps, when the file is written.
MOMENTS = {
    "before_the_start": {"start_step": 25},
    "at_the_start": {"start_step": 20},
    "before_the_first_update": {"every_steps": 25},
    "at_an_update": {"every_steps": 5},
    "between_two_updates": {"every_steps": 7},
    "include": {"every_steps": 7, "include": "kernel"},
}


def at_all_moments():
    """Averages for `MOMENTS`; the one between two updates is swapped in."""
    return [
        BEMA(**options, name=name, swap=name == "between_two_updates")
        for name, options in MOMENTS.items()
    ]


@pytest.mark.filterwarnings("ignore:.*made no average")
def test_training_resumes_exactly_from_a_file(tmp_path):
    model, averages = reused.dense(), at_all_moments()
    fit(model, *averages, epochs=2)
    shown = model.get_weights()
    paths = [save(model, tmp_path / file) for file in FILES]
    before = full_state(model, *averages)
    fit(model, *averages, epochs=1)
    after = full_state(model, *averages)
    again = at_all_moments()
    other = fresh(models.dense, *again)
    for path in paths:
        other.load_weights(path)
        assert equal(other.get_weights(), shown)
        assert differing(full_state(other, *again), before) == []
        other.load_weights(path)
        # This time with the average in the model.
        fit(other, *again, epochs=1)
        assert differing(full_state(other, *again), after) == []
    assert set(differing(before, after)) == before.keys()


class Interrupted(BaseException):
    """Raised where a process would be killed."""


class Interrupt(keras.callbacks.Callback):
    """Interrupts the run in the middle of its third epoch."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.where, self.epoch, batch) == ("training", 2, 5):
            raise Interrupted

    def on_test_batch_end(self, batch, logs=None):
        if (self.where, self.epoch) == ("validation", 2):
            raise Interrupted


def train(*callbacks, order=1):
    """Train a new model with new averages.

    Args:
        *callbacks: The first one is listed before or after the averages.
        order: Integer, -1 to list it before them.
    """
    model = compiled(models.nested())
    averages = [
        BEMA(4),
        BEMA(4, start_step=13, swap=False, name="late"),
        BEMA(24, swap=False, name="rare"),
    ]
    first, *others = callbacks or [keras.callbacks.Callback()]
    listed = [first, *averages] if order < 0 else [*averages, first]
    fit(model, *listed, *others, epochs=4, validation_data=VALIDATION)
    return full_state(model, *averages)


@pytest.fixture(scope="module")
def uninterrupted():
    """The final state of an uninterrupted training."""
    keras.config.set_dtype_policy("float32")
    return train()


@pytest.mark.parametrize(
    ("where", "order"), [("training", 1), ("validation", -1)]
)
@pytest.mark.filterwarnings("ignore:.*made no average")
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    where, order, uninterrupted, tmp_path
):
    """`tests/slow/live/test_resume.py` kills real processes."""
    backup = keras.callbacks.BackupAndRestore
    with pytest.raises(Interrupted):
        train(backup(tmp_path / "backup"), Interrupt(where), order=order)
    resumed = Samples()
    ended = train(backup(tmp_path / "backup"), resumed, order=order)
    assert differing(ended, uninterrupted) == []
    assert len(resumed.weights) == 20


def test_a_file_without_its_moving_average_is_refused(tmp_path):
    model, bema = fresh(models.dense), BEMA(2)
    random_walk(model, bema)
    path = save(model, tmp_path / "a.weights.h5")
    with h5py.File(path, "r+") as file:
        del file["~wavg_bema/vars/ema_1"]
    before = state(bema)
    with pytest.raises(ValueError, match=r"no 'ema_1' for '.*bias'"):
        model.load_weights(path)
    assert equal(state(bema), before)


# Invalid arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"every_steps": 0},
            "`every_steps` must be an integer >= 1.*every_steps=0",
        ),
        ({"every_steps": 2.5}, "`every_steps` must be an integer >= 1"),
        ({"start_step": -1}, "`start_step` must be an integer >= 0"),
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
def test_an_argument_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BEMA(**options)


def test_a_model_that_is_not_built_is_refused():
    bema = BEMA(every_steps=1)
    bema.set_model(models.lazy())
    with pytest.raises(ValueError, match="needs a built model"):
        bema.update()
