"""Several power-function averages, compared with their definition."""

import keras
import models
import numpy
import pytest
import reference
import reused
from models import BATCH, Samples, compiled, data, equal
from saving import random_walk

from keras_wavg import PowerEMA, inspect_checkpoint
from keras_wavg.files.snapshots import profiles_in
from keras_wavg.profile import exponent_from_sigma_rel

WIDTHS = (0.05, 0.2)


def fit(model, *callbacks, epochs=2):
    x, y = data(25)
    model.fit(
        x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[*callbacks]
    )


def averaged_weights(power, sigma_rel):
    with power.applied(sigma_rel):
        return power.model.get_weights()


def assert_averages(power, samples):
    for width in WIDTHS:
        exponent = exponent_from_sigma_rel(width)
        expected = reference.power(samples.weights, exponent, power.every_steps)
        assert (
            reference.relative_error(averaged_weights(power, width), expected)
            < 2e-6
        )


def test_each_average_is_as_defined():
    samples = Samples()
    averages = [
        PowerEMA(WIDTHS, every_steps=every, swap=False, name=f"every_{every}")
        for every in (1, 7, 100)
    ]
    fit(reused.dense(), samples, *averages, epochs=5)
    for power in averages:
        assert_averages(power, samples)


@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": False}], ids=str
)
def test_averages_are_as_defined_however_the_step_is_compiled(options):
    if keras.config.backend() == "tensorflow" and "jit_compile" in options:
        pytest.skip("the default of TensorFlow, as in the other tests")
    samples, power = Samples(), PowerEMA(WIDTHS, every_steps=3, swap=False)
    fit(compiled(models.dense(), **options), samples, power, epochs=1)
    assert_averages(power, samples)


@pytest.fixture(scope="module")
def trained():
    """A trained model that holds the first average."""
    keras.config.set_dtype_policy("float32")
    model, power = compiled(models.dense()), PowerEMA(WIDTHS)
    fit(model, power)
    return model, power


def test_after_fit_the_model_holds_the_first_average(trained):
    model, power = trained
    first = averaged_weights(power, 0.05)
    assert equal(model.get_weights(), first)
    assert equal(first, power.get_weights())
    second = averaged_weights(power, 0.2)
    assert not equal(first, second)
    # The model holds the first average again.
    assert equal(model.get_weights(), first)
    power.restore()
    assert not equal(model.get_weights(), first)
    power.apply()


def test_the_average_of_each_width_can_be_read_and_saved(trained, tmp_path):
    model, power = trained
    shown = model.get_weights()
    for width in WIDTHS:
        path = tmp_path / "alone.weights.h5"
        power.save_weights(path, width)
        plain = models.dense()
        plain.load_weights(path)
        assert equal(plain.get_weights(), averaged_weights(power, width))
        assert equal(power.get_weights(width), averaged_weights(power, width))
        assert profiles_in([path])[0].exponent == exponent_from_sigma_rel(width)
    assert equal(model.get_weights(), shown)


def test_a_width_that_is_not_tracked_is_refused(trained):
    _, power = trained
    with (
        pytest.raises(ValueError, match=r"one of \[0.05, 0.2\]"),
        power.applied(0.1),
    ):
        pass


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """The samples, averages and snapshot directory of a training."""
    keras.config.set_dtype_policy("float32")
    directory, samples = tmp_path_factory.mktemp("snapshots") / "new", Samples()
    power = PowerEMA(WIDTHS, snapshot_dir=directory, snapshot_every_epochs=2)
    fit(compiled(models.batch_norm()), samples, power, epochs=5)
    return samples, power, directory


def test_widths_that_are_nearly_equal_have_different_files(tmp_path):
    widths = (0.1, 0.1 + 1e-9)
    power = PowerEMA(widths, snapshot_dir=tmp_path)
    fit(reused.dense(), power, epochs=1)
    assert len([*tmp_path.iterdir()]) == 2
    assert [*power._contexts()] == [f"power_ema_{width}" for width in widths]


def test_weights_that_are_too_large_to_pack_are_averaged(snapshots):
    samples, power, _ = snapshots
    for width in WIDTHS:
        exponent = exponent_from_sigma_rel(width)
        expected = reference.power(samples.weights, exponent)
        received = power.get_weights(width)
        assert reference.relative_error(received, expected) < 2e-6


def test_averages_do_not_change_training(snapshots):
    samples, alone = snapshots[0], Samples()
    fit(compiled(models.batch_norm()), alone, epochs=5)
    assert samples.losses == alone.losses


def test_snapshots_are_the_averages_at_the_ends_of_epochs(snapshots):
    samples, _, directory = snapshots
    names = sorted(path.name for path in directory.iterdir())
    assert names == [
        f"sigma_{width}-{epoch:05}.weights.h5"
        for width in WIDTHS
        for epoch in (2, 4)
    ]
    for width in WIDTHS:
        path = directory / f"sigma_{width}-00004.weights.h5"
        plain = models.batch_norm()
        plain.load_weights(path)
        expected = reference.power(
            samples.weights[:100], exponent_from_sigma_rel(width)
        )
        assert reference.relative_error(plain.get_weights(), expected) < 2e-6
        assert profiles_in([path])[0].steps == 100
        line = f"an average {profiles_in([path])[0]}"
        assert line in str(inspect_checkpoint(path)).splitlines()
        assert set(inspect_checkpoint(path).arrays) == {
            name
            for name in inspect_checkpoint(path).arrays
            if name.startswith("layers/")
        }


def test_half_precision_weights_are_averaged_in_float32():
    keras.config.set_dtype_policy("bfloat16")
    samples, power = Samples(), PowerEMA(0.1, swap=False)
    fit(compiled(models.dense()), samples, power)
    expected = reference.power(samples.weights, exponent_from_sigma_rel(0.1))
    got = power.get_weights()
    assert {array.dtype for array in got} == {numpy.dtype("float32")}
    assert reference.relative_error(got, expected) < 2e-6


def test_a_weight_that_is_not_finite_is_skipped():
    model, power = models.dense(), PowerEMA(WIDTHS, swap=False)
    random_walk(model, power)
    before = [averaged_weights(power, width) for width in WIDTHS]
    model.layers[0].kernel.assign(keras.ops.full((4, 6), float("nan")))
    power.update()
    assert power.skipped == [model.layers[0].kernel.path]
    after = [averaged_weights(power, width) for width in WIDTHS]
    for one, two in zip(before, after, strict=True):
        assert equal(one[:1], two[:1])
        assert not equal(one, two)


BAD = {
    "zero": ({"sigma_rel": 0}, "`sigma_rel` must be in the range"),
    "wide": ({"sigma_rel": (0.1, 0.3)}, "`sigma_rel` must be in the range"),
    "none": ({"sigma_rel": ()}, "one or several different widths"),
    "None": ({"sigma_rel": None}, "one or several different widths"),
    "twice": ({"sigma_rel": (0.1, 0.1)}, "one or several different widths"),
    "every": ({"every_steps": 0}, "`every_steps` must be an integer >= 1"),
    "epochs": (
        {"snapshot_every_epochs": 0},
        "`snapshot_every_epochs` must be an integer",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_refused(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        PowerEMA(**options)
