"""Snapshots of a training make the average of any horizon afterwards.

Here the weights are made up. `tests/live/test_synthesis_in_training.py` does it
with those of a training.
"""

import json
import zipfile

import h5py
import numpy
import pytest
import reference
import weights_files

from keras_wavg import Profile, sweep, synthesize
from keras_wavg.files.snapshots import profiles_in
from keras_wavg.files.solution import solve

STEPS, EPOCH = 600, 20


def wandering():
    """Weights after each step, that go somewhere and are noisy on the way."""
    rng = numpy.random.default_rng(0)
    steps = 0.1 + rng.normal(size=(STEPS, 50))
    return [[w] for w in numpy.cumsum(steps, axis=0)]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """What `PowerEMA((0.05, 0.1), snapshots=...)` writes after each epoch."""
    folder, samples, paths = tmp_path_factory.mktemp("run"), wandering(), []
    for sigma_rel in (0.05, 0.1):
        for steps in range(EPOCH, STEPS + 1, EPOCH):
            profile = Profile.power(sigma_rel, steps)
            (average,) = reference.power(samples[:steps], profile.exponent)
            path = folder / f"sigma_{sigma_rel}-{steps // EPOCH:05}.weights.h5"
            arrays = {"vars/0": average.astype("float32")}
            paths.append(weights_files.write_snapshot(path, arrays, profile))
    return paths


def exponent(sigma_rel):
    return Profile.power(sigma_rel, STEPS).exponent


TARGETS = {
    "narrow": (
        {"sigma_rel": 0.07},
        lambda samples: reference.power(samples, exponent(0.07)),
    ),
    "wide": (
        {"sigma_rel": 0.15},
        lambda samples: reference.power(samples, exponent(0.15)),
    ),
    "EMA": ({"decay": 0.97}, lambda samples: reference.ema(samples, 0.97)),
    "long EMA": (
        {"half_life": -numpy.log(2) / numpy.log(0.99)},
        lambda samples: reference.ema(samples, 0.99),
    ),
    "profile": (
        {"target": Profile.ema(0.98, STEPS)},
        lambda samples: reference.ema(samples, 0.98),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_an_average_of_all_steps_is_made_of_snapshots(
    name, snapshots, tmp_path
):
    options, average = TARGETS[name]
    output = tmp_path / "made.weights.h5"
    report = synthesize(snapshots, output, **options)
    samples = wandering()
    (expected,), (raw,) = average(samples), samples[-1]
    made = weights_files.read(output)["vars/0"]
    apart = numpy.linalg.norm(made - expected)
    # The long one reaches back to the first steps, before any snapshot.
    most = 0.01 if name == "long EMA" else 0.001
    assert apart <= most * numpy.linalg.norm(raw - expected)
    assert sum(report.solution.coefficients) == pytest.approx(1)
    assert "residual" in str(report)


def test_raw_checkpoints_make_an_average_too(tmp_path):
    """Of weights that go straight on, so that it is known what is right."""
    times = numpy.arange(1, STEPS + 1) / STEPS
    samples = [[numpy.array([time, time**2])] for time in times]
    contents = (
        {
            "vars/0": samples[steps - 1][0],
            "optimizer/vars/0": numpy.int32(steps),
        }
        for steps in range(EPOCH, STEPS + 1, EPOCH)
    )
    paths = weights_files.write_each(tmp_path, *contents)
    output = tmp_path / "made.weights.h5"
    synthesize(paths, output, decay=0.99, max_residual=0.2)
    (expected,) = reference.ema(samples, 0.99)
    made = weights_files.read(output)["vars/0"]
    assert made == pytest.approx(expected, abs=2e-3)


def test_a_sample_stands_for_the_steps_around_its_own_time(tmp_path):
    paths = [
        weights_files.write_snapshot(
            tmp_path / f"{steps}.weights.h5",
            {"vars/0": numpy.ones(2)},
            Profile.mean([time], steps),
        )
        for time, steps in ((10, 15), (25, 30))
    ]
    one, two = (profile.times.tolist() for profile in profiles_in(paths))
    assert (one, two) == ([0.0, 17.5], [17.5, 25.0])


SLOT = {"optimizer/vars/2": numpy.zeros(2, "float32")}


def counted(batches, *, scaled=False, slot=False):
    """What a file has of an optimizer that has seen so many batches."""
    weights = {"vars/0": numpy.ones(2, "float32")}
    count = {"optimizer/vars/0": numpy.int32(batches)}
    if scaled:
        # Keras repeats the inner optimizer after two counts of its own.
        inner = {"optimizer/inner_optimizer/vars/0": numpy.int32(batches)}
        count = {"optimizer/vars/0": numpy.int32(0)} | inner
    return weights | count | (SLOT if slot else {})


def with_accumulation(path, steps, *, is_scaled=False):
    """Write the config of an optimizer into a `.keras` file."""
    config = {"config": {"gradient_accumulation_steps": steps}}
    if is_scaled:
        config = {"config": {"inner_optimizer": config}}
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    kept["config.json"] = json.dumps({"compile_config": {"optimizer": config}})
    with zipfile.ZipFile(path, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)


def steps_of(paths, *arguments, **options):
    found = profiles_in(paths, *arguments, **options)
    return [profile.steps for profile in found]


def test_the_step_under_loss_scaling_is_that_of_the_inner_optimizer(tmp_path):
    contents = [counted(batches, scaled=True) for batches in (10, 20)]
    assert steps_of(weights_files.write_each(tmp_path, *contents)) == [10, 20]


@pytest.mark.parametrize("is_scaled", [False, True])
def test_an_archive_tells_the_batches_of_a_step(is_scaled, tmp_path):
    paths = []
    for batches, steps in ((10, 4), (20, None)):
        path = tmp_path / f"{batches}.keras"
        weights_files.write(path, counted(batches, scaled=is_scaled, slot=True))
        with_accumulation(path, steps, is_scaled=is_scaled)
        paths.append(path)
    assert steps_of(paths) == [2, 20]


def test_batches_that_may_be_accumulated_must_be_told(tmp_path):
    contents = [counted(batches, slot=True) for batches in (10, 20)]
    paths = weights_files.write_each(tmp_path, *contents)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps`, 1"):
        steps_of(paths)
    assert steps_of(paths, 5) == [2, 4]
    # A share of the training is the same in batches.
    assert steps_of(paths, counts_steps=False) == [10, 20]
    profile = Profile.power(0.1, 10)
    arrays = {"vars/0": numpy.ones(2, "float32")}
    path = tmp_path / "power.weights.h5"
    paths.append(weights_files.write_snapshot(path, arrays, profile))
    with pytest.raises(ValueError, match=r"0\.weights\.h5"):
        steps_of(paths, counts_steps=False)


@pytest.mark.parametrize("batches", [-1, 0])
def test_an_optimizer_that_made_no_step_tells_no_time(batches, tmp_path):
    paths = weights_files.write_each(tmp_path, counted(batches))
    with pytest.raises(ValueError, match=f"counts {batches} batches"):
        steps_of(paths)


def test_two_snapshots_of_a_time_are_refused(tmp_path):
    paths = weights_files.write_each(tmp_path, counted(10), counted(10))
    with pytest.raises(ValueError, match="both after 10 steps"):
        synthesize(paths, tmp_path / "made.weights.h5", decay=0.9)


def test_averages_of_two_widths_after_one_step_are_no_doubles(tmp_path):
    arrays = {"vars/0": numpy.ones(2, "float32")}
    paths = [
        weights_files.write_snapshot(
            tmp_path / f"{width}.weights.h5", arrays, Profile.power(width, 1)
        )
        for width in (0.05, 0.1)
    ]
    assert steps_of(paths) == [1, 1]


def nearly_the_same(folder, apart):
    arrays = {"vars/0": numpy.ones(2, "float32")}
    return [
        weights_files.write_snapshot(
            folder / f"{number}.weights.h5",
            arrays,
            Profile.power(0.1 * (1 + apart * number), 1000),
        )
        for number in range(6)
    ]


def test_snapshots_that_are_nearly_the_same_share_what_they_have(tmp_path):
    paths = nearly_the_same(tmp_path, 1e-9)
    report = synthesize(paths, tmp_path / "made.weights.h5", sigma_rel=0.1)
    assert max(report.solution.coefficients) < 1
    assert report.solution.residual < 1e-6


def test_coefficients_that_blow_up_what_was_rounded_are_refused(tmp_path):
    paths = nearly_the_same(tmp_path, 1e-2)
    with pytest.raises(ValueError, match="rounded off in float32 would be"):
        synthesize(paths, tmp_path / "made.weights.h5", sigma_rel=0.2)


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


def test_what_snapshots_cannot_make_is_refused(snapshots, tmp_path):
    output = tmp_path / "made.weights.h5"
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(snapshots[-1:], output, sigma_rel=0.05)
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(snapshots, output, decay=0.5)
    assert not output.exists()


def test_a_snapshot_that_does_not_know_its_time_is_refused(tmp_path):
    content = {"vars/0": numpy.ones(2)}
    path = weights_files.write(tmp_path / "plain.weights.h5", content)
    with pytest.raises(ValueError, match="must carry its profile"):
        synthesize([path], tmp_path / "made.weights.h5", decay=0.9)


@pytest.mark.parametrize(
    "options", [{}, {"decay": 0.9, "sigma_rel": 0.1}], ids=["none", "two"]
)
def test_there_is_one_target(options, snapshots, tmp_path):
    with pytest.raises(ValueError, match="Exactly one of"):
        synthesize(snapshots, tmp_path / "a.weights.h5", **options)


def test_a_sweep_scores_each_width(snapshots, tmp_path):
    seen = []

    def score(path):
        seen.append(path.name)
        return len(seen)

    widths = [0.05, 0.1, 0.15]
    with pytest.warns(match="Left out: sigma_rel 0.001, residual"):
        scores = sweep(snapshots, [0.001, *widths], score, tmp_path)
    assert scores == {0.05: 1, 0.1: 2, 0.15: 3}
    assert seen == [f"sigma_{width:g}.weights.h5" for width in widths]
    with (
        pytest.warns(match="Left out"),
        pytest.raises(ValueError, match="able to make one of the widths"),
    ):
        sweep(snapshots, [0.001], score, tmp_path)


def test_a_sweep_refuses_a_file_that_exists_before_it_scores_any(
    snapshots, tmp_path
):
    there = tmp_path / "sigma_0.15.weights.h5"
    there.touch()
    with pytest.raises(FileExistsError, match=r"sigma_0\.15"):
        sweep(snapshots, [0.05, 0.15], pytest.fail, tmp_path)
    assert list(tmp_path.iterdir()) == [there]


def test_widths_of_a_sweep_have_files_of_their_own(snapshots, tmp_path):
    with pytest.raises(ValueError, match="differ in their first six digits"):
        sweep(snapshots, [0.1, 0.1 + 1e-9], pytest.fail, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_snapshots_that_can_be_gone_through_once(
    snapshots, tmp_path
):
    scores = sweep(iter(snapshots), [0.05, 0.1], lambda path: 1, tmp_path)
    assert scores == {0.05: 1, 0.1: 1}


def test_a_profile_that_is_damaged_is_refused_by_the_name_of_its_file(tmp_path):
    arrays = {"a/vars/0": numpy.ones(1, "float32")}
    paths = [
        weights_files.write_snapshot(
            tmp_path / f"{steps}.weights.h5", arrays, Profile.power(0.1, steps)
        )
        for steps in (10, 20)
    ]
    with h5py.File(paths[1], "a") as file:
        file.attrs["keras_wavg_profile"] = "{"
    with pytest.raises(ValueError, match=r"20\.weights\.h5: A profile must be"):
        synthesize(paths, tmp_path / "made.weights.h5", sigma_rel=0.1)
