"""Snapshots of a training make the average of any horizon afterwards."""

import h5py
import keras
import models
import numpy
import pytest
import weights_files
from models import BATCH, clock, compiled, data

from keras_wavg import EMA, PowerEMA, Profile, sweep, synthesize
from keras_wavg.files.solution import solve
from keras_wavg.files.synthesis import _profiles_in, profile_in

STEPS = 600
EPOCHS = 30  # of 20 steps: snapshots are 20 times as sparse as steps


def trained(folder, *callbacks, build=models.batch_norm):
    """A training with snapshots, and the model that it was of."""
    model = compiled(build(), keras.optimizers.SGD(0.01))
    power = PowerEMA((0.05, 0.1), snapshots=folder, swap=False)
    x, y = data(STEPS // EPOCHS)
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[power, *callbacks],
    )
    return model, power


def loaded(path):
    model = models.batch_norm()
    model.load_weights(path)
    return model.get_weights()


def distance(one, two):
    return numpy.sqrt(
        sum(numpy.square(a - b).sum() for a, b in zip(one, two, strict=True))
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Snapshots, raw checkpoints, averages tracked in training."""
    folder = tmp_path_factory.mktemp("run") / "snapshots"
    tracked = {
        "narrow": PowerEMA(0.07, swap=False, name="narrow"),
        "wide": PowerEMA(0.15, swap=False, name="wide"),
        "EMA": EMA(0.97, swap=False, name="a"),
        "long EMA": EMA(0.99, swap=False, name="b"),
    }
    keras.utils.set_random_seed(0)
    model, power = trained(folder, *tracked.values())
    weights = {name: t.get_weights() for name, t in tracked.items()}
    return folder, model, power, weights


TARGETS = {
    "narrow": {"sigma_rel": 0.07},
    "wide": {"sigma_rel": 0.15},
    "EMA": {"decay": 0.97},
    "long EMA": {"half_life": -numpy.log(2) / numpy.log(0.99)},
}


@pytest.mark.parametrize("name", TARGETS)
def test_an_average_that_was_tracked_is_made_again(name, run, tmp_path):
    folder, model, _, tracked = run
    output = tmp_path / "made.weights.h5"
    report = synthesize(sorted(folder.iterdir()), output, **TARGETS[name])
    raw, made = model.get_weights(), loaded(output)
    apart = distance(made, tracked[name])
    # The long one reaches back to the first steps, which go the farthest.
    most = 0.03 if name == "long EMA" else 0.01
    assert apart <= most * distance(raw, tracked[name])
    assert sum(report.solution.coefficients) == pytest.approx(1)
    assert "residual" in str(report)


def test_raw_checkpoints_make_an_average_too(tmp_path):
    """Of weights that go straight on, so that it is known what is right."""
    model, ema = clock(STEPS), EMA(0.99)
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch:03d}.weights.h5", save_weights_only=True
    )
    x = numpy.zeros((STEPS // EPOCHS, 1), "float32")
    model.fit(x, batch_size=1, epochs=EPOCHS, verbose=0, callbacks=[checkpoint])
    model = clock(STEPS)
    x = numpy.zeros((STEPS, 1), "float32")
    model.fit(x, batch_size=1, verbose=0, callbacks=[ema])
    output = tmp_path / "made.weights.h5"
    synthesize(sorted(tmp_path.iterdir()), output, decay=0.99, max_residual=0.2)
    made = clock(STEPS)
    made.load_weights(output)
    for got, expected in zip(
        made.get_weights(), ema.get_weights(), strict=True
    ):
        assert got == pytest.approx(expected, abs=2e-3)


def test_a_sample_stands_for_the_steps_around_its_own_time(tmp_path):
    paths = [
        with_profile(tmp_path / f"{steps}.weights.h5", [time], steps)
        for time, steps in ((10, 15), (25, 30))
    ]
    one, two = (profile.times.tolist() for profile in _profiles_in(paths))
    assert (one, two) == ([0.0, 17.5], [17.5, 25.0])


def with_profile(path, times, steps):
    """A file with the mean of samples taken at some times."""
    weights_files.write(path, {"vars/0": numpy.ones(2)})
    with h5py.File(path, "a") as file:
        text = Profile.mean(times, steps).to_json()
        file.attrs["keras_wavg_profile"] = text
    return path


def test_snapshots_carry_their_profiles_and_load_in_a_plain_model(run):
    folder, _, power, _ = run
    paths = sorted(folder.iterdir())
    assert len(paths) == 2 * EPOCHS
    assert paths[-1].name == f"sigma_0.1-{EPOCHS:05}.weights.h5"
    models.batch_norm().load_weights(paths[-1])
    for path, sigma_rel in ((paths[-1], 0.1), (paths[EPOCHS - 1], 0.05)):
        found, own = profile_in(path), power.profile(sigma_rel)
        assert found.steps == STEPS
        assert found.exponent == own.exponent
        assert found.mean_age == pytest.approx(own.mean_age)


def test_coefficients_are_those_of_the_closed_form():
    profiles = [
        Profile.power(sigma_rel, steps)
        for steps in range(1000, 9000, 1000)
        for sigma_rel in (0.05, 0.1)
    ]
    for sigma_rel in (0.03, 0.07, 0.15, 0.25):
        target = Profile.power(sigma_rel, 8000)
        both = [*profiles, target]
        exponents = numpy.array([p.exponent for p in both])
        ends = numpy.array([p.steps for p in both], "float64")
        ratio = ends[:, None] / ends
        power = numpy.where(
            ends[:, None] < ends, exponents, -exponents[:, None]
        )
        products = (
            (exponents[:, None] + 1)
            * (exponents + 1)
            * ratio**power
            / (exponents[:, None] + exponents + 1)
            / numpy.maximum(ends[:, None], ends)
        )
        expected = numpy.linalg.solve(products[:-1, :-1], products[:-1, -1])
        expected /= expected.sum()
        got = solve(profiles, target).coefficients
        numpy.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_what_snapshots_cannot_make_is_refused(run, tmp_path):
    folder, *_ = run
    paths = sorted(folder.iterdir())
    output = tmp_path / "made.weights.h5"
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(paths[-1:], output, sigma_rel=0.05)
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(paths, output, decay=0.5)
    assert not output.exists()


def test_a_snapshot_that_does_not_know_its_time_is_refused(tmp_path):
    path = tmp_path / "plain.weights.h5"
    models.dense().save_weights(path)
    with pytest.raises(ValueError, match="must carry its profile"):
        synthesize([path], tmp_path / "made.weights.h5", decay=0.9)


@pytest.mark.parametrize(
    "options", [{}, {"decay": 0.9, "sigma_rel": 0.1}], ids=["none", "two"]
)
def test_there_is_one_target(options, run, tmp_path):
    folder, *_ = run
    with pytest.raises(ValueError, match="Exactly one of"):
        synthesize(
            sorted(folder.iterdir()), tmp_path / "a.weights.h5", **options
        )


def test_a_sweep_scores_each_width(run, tmp_path):
    folder, *_ = run
    seen = []

    def score(path):
        seen.append(path.name)
        return len(seen)

    widths = [0.05, 0.1, 0.15]
    with pytest.warns(match="Left out: sigma_rel 0.001, residual"):
        scores = sweep(
            sorted(folder.iterdir()), [0.001, *widths], score, tmp_path
        )
    assert scores == {0.05: 1, 0.1: 2, 0.15: 3}
    assert seen == [f"sigma_{width:g}.weights.h5" for width in widths]
    with (
        pytest.warns(match="Left out"),
        pytest.raises(ValueError, match="able to make one of the widths"),
    ):
        sweep(sorted(folder.iterdir()), [0.001], score, tmp_path)


def test_a_sweep_refuses_a_file_that_exists_before_it_scores_any(run, tmp_path):
    snapshots = sorted(run[0].iterdir())
    there = tmp_path / "sigma_0.15.weights.h5"
    there.touch()
    with pytest.raises(FileExistsError, match=r"sigma_0\.15"):
        sweep(snapshots, [0.05, 0.15], pytest.fail, tmp_path)
    assert list(tmp_path.iterdir()) == [there]


def test_widths_of_a_sweep_have_files_of_their_own(run, tmp_path):
    snapshots = sorted(run[0].iterdir())
    with pytest.raises(ValueError, match="differ in their first six digits"):
        sweep(snapshots, [0.1, 0.1 + 1e-9], pytest.fail, tmp_path)
    assert list(tmp_path.iterdir()) == []
