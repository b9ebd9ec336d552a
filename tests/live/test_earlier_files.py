"""Files that earlier versions wrote can be loaded, see `tests/fixtures`."""

import itertools
from pathlib import Path

import keras
import models
import numpy
import probe
import pytest

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, Lookahead, PowerEMA

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = numpy.load(FIXTURES / "version_2.npz")


def expected(name):
    """The saved arrays of a name, in the order of the model's weights."""
    keys = (f"{name}/{i}" for i in itertools.count())
    return [
        EXPECTED[k] for k in itertools.takewhile(EXPECTED.__contains__, keys)
    ]


def new_model():
    """The model of the files, with other weights."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def averages_of_the_files():
    """Averages with the arguments that they had in the files."""
    return [
        EMA(0.9),
        EMA(
            0.9,
            bias_correction=False,
            every_steps=3,
            swap=False,
            name="textbook",
        ),
        PowerEMA((0.05, 0.1), swap=False, name="power"),
        SWA(swap=False),
        LAWA(2, swap=False),
        SWAG(2, swap=False),
        BEMA(2, swap=False),
        FGE(4),
        Lookahead(5, swap=False),
    ]


def loaded(model, averages, file):
    for average in averages:
        average.set_model(model)
    model.load_weights(FIXTURES / f"version_2_{file}.weights.h5")


@pytest.mark.parametrize("file", ["raw_in_model", "average_in_model"])
def test_loading_a_version_2_file_restores_all_averages_and_raw_weights(file):
    model, averages = new_model(), averages_of_the_files()
    loaded(model, averages, file)
    assert probe.is_in_model(averages[0]) == (file == "average_in_model")
    for average in averages:
        assert models.equal(average.get_weights(), expected(average.name))
        counts = EXPECTED[f"{average.name}/counts"].tolist()
        assert [*probe.counts(average)] == counts, average.name
    wide = averages[2].get_weights(0.1)
    assert models.equal(wide, expected("power_wide"))
    averages[0].restore()
    assert models.equal(model.get_weights(), expected("raw"))


def test_training_continues_from_a_version_2_file():
    model, averages = new_model(), averages_of_the_files()
    loaded(model, averages, "average_in_model")
    x = numpy.random.default_rng(1).normal(size=(16, 3))
    model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=averages)
    assert [probe.counts(average).now for average in averages] == [14] * 9
    averages[0].restore()
    assert not models.equal(model.get_weights(), expected("raw"))


def test_loading_a_version_2_file_applies_a_pending_overwrite():
    model, lookahead = new_model(), Lookahead(5)
    loaded(model, [lookahead], "overwritten")
    assert models.equal(lookahead.get_weights(), expected("slow"))
    lookahead.restore()
    assert models.equal(model.get_weights(), expected("overwritten"))
