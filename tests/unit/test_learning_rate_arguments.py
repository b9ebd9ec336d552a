"""The arguments of learning rates: what is refused, and the config."""

import math

import keras
import numpy
import pytest

from keras_wavg.learning_rates import (
    AnnealToConstant,
    CyclicLearningRate,
    TriangularLearningRate,
)

CYCLES = [CyclicLearningRate, TriangularLearningRate]


def nested():
    decay = keras.optimizers.schedules.CosineDecay(0.5, 3)
    return AnnealToConstant(
        CyclicLearningRate(0.1, 0.02, 4, before=decay, start_step=3),
        0.05,
        start_step=8,
        anneal_steps=4,
    )


def rates(schedule):
    return [float(schedule(step)) for step in range(15)]


@pytest.mark.parametrize(
    "schedule",
    [*(kind(0.1, 0.02, 4) for kind in CYCLES), nested()],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_config_makes_the_same_schedule(schedule):
    config = schedule.get_config()
    again = type(schedule).from_config(config)
    assert again.get_config() == config
    assert rates(again) == rates(schedule)
    written = keras.optimizers.schedules.serialize(schedule)
    read = keras.optimizers.schedules.deserialize(written)
    assert type(read) is type(schedule)
    assert read.get_config() == config


GOOD_CYCLE = {
    "max_learning_rate": 0.1,
    "min_learning_rate": 0.01,
    "cycle_steps": 4,
}
BAD_CYCLES = [
    ({"max_learning_rate": -1}, r"finite number >= 0. .*max_learning_rate=-1"),
    ({"max_learning_rate": math.inf}, r"`max_learning_rate` must be a finite"),
    ({"min_learning_rate": math.nan}, r"`min_learning_rate` must be a finite"),
    ({"min_learning_rate": "0"}, r"Received: min_learning_rate='0'"),
    ({"min_learning_rate": 0.2}, r"must not exceed .*min_learning_rate=0.2"),
    ({"cycle_steps": 0}, r"`cycle_steps` must be an .*integer .*cycle_steps=0"),
    ({"cycle_steps": 2.0}, r"`cycle_steps` must be an .* cycle_steps=2.0"),
    ({"start_step": -1}, r"`start_step` must be an integer >= 0. Received: "),
    ({"start_step": 2}, r"`before`, .* is required .*Received: start_step=2"),
    ({"start_step": 2, "before": "0.1"}, r"`before` must .* before='0.1'"),
    ({"start_step": 2, "before": math.nan}, r"`before` must .* before=nan"),
]


@pytest.mark.parametrize("kind", CYCLES)
@pytest.mark.parametrize(("arguments", "message"), BAD_CYCLES, ids=str)
def test_a_bad_cycle_is_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**GOOD_CYCLE | arguments)


def test_a_triangle_has_a_middle():
    message = (
        "`cycle_steps` must be an even integer >= 2. Received: cycle_steps=5"
    )
    with pytest.raises(ValueError, match=message):
        TriangularLearningRate(0.1, 0.01, 5)


GOOD_ANNEALING = {
    "before": 0.1,
    "learning_rate": 0.05,
    "start_step": 3,
    "anneal_steps": 2,
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"before": None}, r"`before` must be a number or a .* before=None"),
        ({"before": -0.1}, r"`before` must be a finite .* before=-0.1"),
        ({"learning_rate": math.nan}, r"`learning_rate` must be a finite"),
        ({"start_step": 1.5}, r"`start_step` must be an integer >= 0"),
        ({"anneal_steps": -1}, r"`anneal_steps` must be an integer >= 0"),
        ({"anneal": "cos"}, r"'cosine', 'linear'.*Received: anneal='cos'"),
    ],
    ids=str,
)
def test_a_bad_annealing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnnealToConstant(**GOOD_ANNEALING | arguments)


def test_numpy_numbers_are_numbers():
    schedule = CyclicLearningRate(
        numpy.float32(0.5), numpy.float64(0.25), numpy.int64(2)
    )
    config = schedule.get_config()
    assert [type(config[name]) for name in GOOD_CYCLE] == [float, float, int]
