"""Averages synthesized from files are close to those tracked in training."""

from types import SimpleNamespace

import keras
import models
import numpy
import pytest
from models import BATCH, compiled, data

from keras_wavg import EMA, PowerEMA, synthesize
from keras_wavg.files.snapshots import profiles_in

EPOCHS, BATCHES = 30, 10
STEPS = EPOCHS * BATCHES


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
    """Snapshots, raw checkpoints and tracked averages of one training."""
    directory = tmp_path_factory.mktemp("run")
    power = PowerEMA(
        (0.05, 0.1), snapshot_dir=directory / "snapshots", swap=False
    )
    tracked = PowerEMA((0.07, 0.15), swap=False, name="tracked")
    ema = EMA(0.94, swap=False, name="ema")
    long = EMA(0.975, swap=False, name="long")
    checkpoint = keras.callbacks.ModelCheckpoint(
        directory / "raw-{epoch:03}.weights.h5", save_weights_only=True
    )
    keras.utils.set_random_seed(0)
    model = compiled(models.batch_norm(), keras.optimizers.SGD(0.01))
    model.fit(
        *data(BATCHES),
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[power, tracked, ema, long, checkpoint],
    )
    return SimpleNamespace(
        snapshots=sorted((directory / "snapshots").iterdir()),
        checkpoints=sorted(directory.glob("raw-*")),
        power=power,
        raw=model.get_weights(),
        averages={
            "narrow": tracked.get_weights(0.07),
            "wide": tracked.get_weights(0.15),
            "EMA": ema.get_weights(),
            "long EMA": long.get_weights(),
        },
    )


TARGETS = {
    "narrow": {"sigma_rel": 0.07},
    "wide": {"sigma_rel": 0.15},
    "EMA": {"decay": 0.94},
    "long EMA": {"decay": 0.975},
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_synthesized_average_is_close_to_the_tracked_one(name, run, tmp_path):
    output = tmp_path / "synthesized.weights.h5"
    report = synthesize(run.snapshots, output, **TARGETS[name])
    tracked = run.averages[name]
    # The long one includes the first steps, where weights change the most.
    most = 0.03 if name == "long EMA" else 0.01
    apart, moved = distance(loaded(output), tracked), distance(run.raw, tracked)
    assert apart <= most * moved
    assert sum(report.solution.coefficients) == pytest.approx(1)


def test_an_average_can_be_synthesized_from_raw_checkpoints(run, tmp_path):
    """Roughly: a checkpoint represents all steps of its epoch."""
    steps = [profile.steps for profile in profiles_in(run.checkpoints)]
    assert steps == [BATCHES * (1 + epoch) for epoch in range(EPOCHS)]
    output = tmp_path / "synthesized.weights.h5"
    synthesize(run.checkpoints, output, **TARGETS["wide"])
    tracked = run.averages["wide"]
    apart, moved = distance(loaded(output), tracked), distance(run.raw, tracked)
    assert apart <= 0.5 * moved


def test_snapshots_contain_profiles_and_load_in_a_plain_model(run):
    paths = run.snapshots
    assert len(paths) == 2 * EPOCHS
    assert paths[-1].name == f"sigma_0.1-{EPOCHS:05}.weights.h5"
    for path, sigma_rel in ((paths[-1], 0.1), (paths[EPOCHS - 1], 0.05)):
        expected = run.power.get_weights(sigma_rel)
        for got, weights in zip(loaded(path), expected, strict=True):
            numpy.testing.assert_array_equal(got, weights)
        found, own = profiles_in([path])[0], run.power.profile(sigma_rel)
        assert found.steps == STEPS
        assert found.exponent == own.exponent
        assert found.mean_age == pytest.approx(own.mean_age)
