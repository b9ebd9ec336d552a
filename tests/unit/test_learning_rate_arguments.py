"""Learning rate schedules: invalid arguments, config and `repr`."""

import functools
import math

import keras
import numpy
import pytest

from keras_wavg.learning_rates import AnnealToConstant, CyclicLearningRate

SAWTOOTH = functools.partial(CyclicLearningRate, shape="sawtooth")
TRIANGLE = functools.partial(CyclicLearningRate, shape="triangle")


def nested():
    decay = keras.optimizers.schedules.CosineDecay(0.5, 3)
    return AnnealToConstant(
        TRIANGLE(0.1, 0.02, 4, before=decay, start_step=3, name="cycle"),
        0.05,
        start_step=8,
        anneal_steps=4,
    )


def rates(schedule):
    return [float(schedule(step)) for step in range(15)]


@pytest.mark.parametrize(
    "schedule",
    [SAWTOOTH(0.1, 0.02, 4), TRIANGLE(0.1, 0.02, 4), nested()],
    ids=["sawtooth", "triangle", "nested"],
)
def test_a_config_creates_the_same_schedule(schedule):
    config = schedule.get_config()
    created = type(schedule).from_config(config)
    assert created.get_config() == config
    assert rates(created) == rates(schedule)
    serialized = keras.optimizers.schedules.serialize(schedule)
    deserialized = keras.optimizers.schedules.deserialize(serialized)
    assert type(deserialized) is type(schedule)
    assert deserialized.get_config() == config
    assert repr(deserialized) == repr(schedule)


def test_names_are_in_the_config():
    assert SAWTOOTH(0.1, 0.02, 4).get_config()["name"] == "CyclicLearningRate"
    config = nested().get_config()
    assert config["name"] == "AnnealToConstant"
    assert config["before"]["config"]["name"] == "cycle"


def test_repr_has_the_settings_that_are_not_defaults():
    assert repr(SAWTOOTH(0.1, 0.02, 4)) == (
        "CyclicLearningRate(max_learning_rate=0.1, min_learning_rate=0.02, "
        "cycle_steps=4)"
    )
    assert repr(nested()) == (
        "AnnealToConstant(before=CyclicLearningRate(max_learning_rate=0.1, "
        "min_learning_rate=0.02, cycle_steps=4, shape='triangle', "
        "before=CosineDecay, start_step=3, name='cycle'), "
        "learning_rate=0.05, start_step=8, anneal_steps=4)"
    )


CYCLE = {
    "max_learning_rate": 0.1,
    "min_learning_rate": 0.01,
    "cycle_steps": 4,
}
INVALID_CYCLES = [
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


@pytest.mark.parametrize("create", [SAWTOOTH, TRIANGLE], ids=str)
@pytest.mark.parametrize(("arguments", "message"), INVALID_CYCLES, ids=str)
def test_an_invalid_cycle_is_refused(create, arguments, message):
    with pytest.raises(ValueError, match=message):
        create(**CYCLE | arguments)


@pytest.mark.parametrize("shape", ["sine", "Triangle", None, 2])
def test_an_invalid_shape_is_refused(shape):
    message = rf"`shape` must be one of \('sawtooth', 'triangle'\).*={shape!r}"
    with pytest.raises(ValueError, match=message):
        CyclicLearningRate(**CYCLE, shape=shape)


def test_a_triangle_of_an_odd_number_of_steps_is_refused():
    message = (
        "`cycle_steps` must be an even integer >= 2. Received: cycle_steps=5"
    )
    with pytest.raises(ValueError, match=message):
        TRIANGLE(0.1, 0.01, 5)


ANNEALING = {
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
def test_invalid_annealing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnnealToConstant(**ANNEALING | arguments)


def test_numpy_numbers_are_accepted():
    schedule = CyclicLearningRate(
        numpy.float32(0.5), numpy.float64(0.25), numpy.int64(2)
    )
    config = schedule.get_config()
    assert [type(config[name]) for name in CYCLE] == [float, float, int]
