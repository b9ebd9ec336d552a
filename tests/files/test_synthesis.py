"""Averages of any horizon are synthesized from snapshots.

The weights are simulated. `tests/live/test_synthesis_in_training.py` uses those
of a training.
"""

import json
import zipfile

import h5py
import numpy
import pytest
import reference
import weights_files

from keras_wavg import Profile, sweep, synthesize
from keras_wavg.files.profile_fit import fit_profiles
from keras_wavg.files.snapshots import profiles_in

STEPS, EPOCH = 600, 20


def random_walk():
    """Weights after each step of a random walk with drift."""
    rng = numpy.random.default_rng(0)
    steps = 0.1 + rng.normal(size=(STEPS, 50))
    return [[w] for w in numpy.cumsum(steps, axis=0)]


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """Snapshots as `PowerEMA((0.05, 0.1), snapshot_dir=...)` saves them."""
    directory = tmp_path_factory.mktemp("run")
    samples, paths = random_walk(), []
    for sigma_rel in (0.05, 0.1):
        for steps in range(EPOCH, STEPS + 1, EPOCH):
            profile = Profile.power(sigma_rel, steps)
            (average,) = reference.power(samples[:steps], profile.exponent)
            name = f"sigma_{sigma_rel}-{steps // EPOCH:05}.weights.h5"
            path = directory / name
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
        {"decay": 0.99},
        lambda samples: reference.ema(samples, 0.99),
    ),
    "profile": (
        {"target": Profile.ema(0.98, STEPS)},
        lambda samples: reference.ema(samples, 0.98),
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_average_of_all_steps_is_synthesized_from_snapshots(
    name, snapshots, tmp_path
):
    options, average = TARGETS[name]
    output = tmp_path / "made.weights.h5"
    report = synthesize(snapshots, output, **options)
    samples = random_walk()
    (expected,), (raw,) = average(samples), samples[-1]
    made = weights_files.read(output)["vars/0"]
    apart = numpy.linalg.norm(made - expected)
    # The long EMA includes the first steps, before any snapshot.
    tolerance = 0.01 if name == "long EMA" else 0.001
    assert apart <= tolerance * numpy.linalg.norm(raw - expected)
    assert sum(report.solution.coefficients) == pytest.approx(1)
    assert "residual" in str(report)
    assert repr(report).startswith(f"SynthesisReport(output={str(output)!r}, ")
    assert "Solution(coefficients=60, residual=" in repr(report)
    assert "\n" not in repr(report)


def test_an_average_is_synthesized_from_raw_checkpoints(tmp_path):
    """Of polynomial weights, whose average is known."""
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


def test_a_sample_represents_the_steps_around_its_time(tmp_path):
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
    """The arrays of a file whose optimizer has counted some batches."""
    weights = {"vars/0": numpy.ones(2, "float32")}
    count = {"optimizer/vars/0": numpy.int32(batches)}
    if scaled:
        # Keras saves the inner optimizer after two counts of the outer one.
        inner = {"optimizer/inner_optimizer/vars/0": numpy.int32(batches)}
        count = {"optimizer/vars/0": numpy.int32(0)} | inner
    return weights | count | (SLOT if slot else {})


def with_accumulation(path, steps, *, is_scaled=False):
    """Write the config of an optimizer into a `.keras` file."""
    config = {"config": {"gradient_accumulation_steps": steps}}
    if is_scaled:
        config = {"config": {"inner_optimizer": config}}
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["config.json"] = json.dumps(
        {"compile_config": {"optimizer": config}}
    )
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


def steps_of(paths, *arguments, **options):
    found = profiles_in(paths, *arguments, **options)
    return [profile.steps for profile in found]


def test_with_loss_scaling_the_step_is_that_of_the_inner_optimizer(tmp_path):
    contents = [counted(batches, scaled=True) for batches in (10, 20)]
    assert steps_of(weights_files.write_each(tmp_path, *contents)) == [10, 20]


@pytest.mark.parametrize("is_scaled", [False, True])
def test_an_archive_contains_the_number_of_batches_for_each_step(
    is_scaled, tmp_path
):
    paths = []
    for batches, steps in ((10, 4), (20, None)):
        path = tmp_path / f"{batches}.keras"
        weights_files.write(path, counted(batches, scaled=is_scaled, slot=True))
        with_accumulation(path, steps, is_scaled=is_scaled)
        paths.append(path)
    assert steps_of(paths) == [2, 20]


def test_the_number_of_batches_for_each_step_is_required_if_unknown(tmp_path):
    contents = [counted(batches, slot=True) for batches in (10, 20)]
    paths = weights_files.write_each(tmp_path, *contents)
    with pytest.raises(ValueError, match=r"`gradient_accumulation_steps` \(1"):
        steps_of(paths)
    assert steps_of(paths, 5) == [2, 4]
    # A fraction of the training is the same in batches.
    assert steps_of(paths, in_steps=False) == [10, 20]
    profile = Profile.power(0.1, 10)
    arrays = {"vars/0": numpy.ones(2, "float32")}
    path = tmp_path / "power.weights.h5"
    paths.append(weights_files.write_snapshot(path, arrays, profile))
    with pytest.raises(ValueError, match=r"0\.weights\.h5"):
        steps_of(paths, in_steps=False)


@pytest.mark.parametrize("batches", [-1, 0])
def test_an_optimizer_without_steps_is_refused(batches, tmp_path):
    paths = weights_files.write_each(tmp_path, counted(batches))
    with pytest.raises(ValueError, match=f"counted {batches} batches"):
        steps_of(paths)


def test_two_snapshots_from_the_same_time_are_refused(tmp_path):
    paths = weights_files.write_each(tmp_path, counted(10), counted(10))
    with pytest.raises(ValueError, match="both after 10 steps"):
        synthesize(paths, tmp_path / "made.weights.h5", decay=0.9)


def test_averages_of_two_widths_after_one_step_are_not_duplicates(tmp_path):
    arrays = {"vars/0": numpy.ones(2, "float32")}
    paths = [
        weights_files.write_snapshot(
            tmp_path / f"{width}.weights.h5", arrays, Profile.power(width, 1)
        )
        for width in (0.05, 0.1)
    ]
    assert steps_of(paths) == [1, 1]


def nearly_equal_snapshots(directory, difference):
    arrays = {"vars/0": numpy.ones(2, "float32")}
    return [
        weights_files.write_snapshot(
            directory / f"{number}.weights.h5",
            arrays,
            Profile.power(0.1 * (1 + difference * number), 1000),
        )
        for number in range(6)
    ]


def test_nearly_equal_snapshots_share_the_coefficients(tmp_path):
    paths = nearly_equal_snapshots(tmp_path, 1e-9)
    report = synthesize(paths, tmp_path / "made.weights.h5", sigma_rel=0.1)
    assert max(report.solution.coefficients) < 1
    assert report.solution.residual < 1e-6


def test_coefficients_that_amplify_rounding_errors_are_refused(tmp_path):
    paths = nearly_equal_snapshots(tmp_path, 1e-2)
    with pytest.raises(ValueError, match="errors in float32 would be"):
        synthesize(paths, tmp_path / "made.weights.h5", sigma_rel=0.2)


def test_coefficients_equal_those_of_the_closed_form():
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
        got = fit_profiles(profiles, target).coefficients
        numpy.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_insufficient_snapshots_are_refused(snapshots, tmp_path):
    output = tmp_path / "made.weights.h5"
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(snapshots[-1:], output, sigma_rel=0.05)
    with pytest.raises(ValueError, match="leave a residual of"):
        synthesize(snapshots, output, decay=0.5)
    assert not output.exists()


def test_a_snapshot_without_a_time_is_refused(tmp_path):
    content = {"vars/0": numpy.ones(2)}
    path = weights_files.write(tmp_path / "plain.weights.h5", content)
    with pytest.raises(ValueError, match="must contain its profile"):
        synthesize([path], tmp_path / "made.weights.h5", decay=0.9)


@pytest.mark.parametrize(
    "options", [{}, {"decay": 0.9, "sigma_rel": 0.1}], ids=["none", "two"]
)
def test_exactly_one_target_is_required(options, snapshots, tmp_path):
    with pytest.raises(ValueError, match="Exactly one of"):
        synthesize(snapshots, tmp_path / "a.weights.h5", **options)


def test_a_sweep_scores_each_width(snapshots, tmp_path):
    seen = []

    def score(path):
        seen.append(path.name)
        return len(seen)

    widths = [0.05, 0.1, 0.15]
    with pytest.warns(match="Skipped: sigma_rel 0.001, residual"):
        scores = sweep(snapshots, tmp_path, [0.001, *widths], score)
    assert scores == {0.05: 1, 0.1: 2, 0.15: 3}
    assert seen == [f"sigma_{width:g}.weights.h5" for width in widths]
    with (
        pytest.warns(match="Skipped"),
        pytest.raises(ValueError, match="sufficient for at least one width"),
    ):
        sweep(snapshots, tmp_path, [0.001], score)


def test_a_sweep_refuses_an_existing_file_before_scoring(snapshots, tmp_path):
    existing = tmp_path / "sigma_0.15.weights.h5"
    existing.touch()
    with pytest.raises(FileExistsError, match=r"sigma_0\.15"):
        sweep(snapshots, tmp_path, [0.05, 0.15], pytest.fail)
    assert list(tmp_path.iterdir()) == [existing]


def test_widths_of_a_sweep_must_have_different_file_names(snapshots, tmp_path):
    with pytest.raises(ValueError, match="differ in their first six digits"):
        sweep(snapshots, tmp_path, [0.1, 0.1 + 1e-9], pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_accepts_an_iterator_of_snapshots(snapshots, tmp_path):
    scores = sweep(iter(snapshots), tmp_path, [0.05, 0.1], lambda path: 1)
    assert scores == {0.05: 1, 0.1: 1}


def test_the_error_of_a_damaged_profile_names_the_file(tmp_path):
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
