"""Averages of every kind, and checks that a file restores all of their state.

For tests of files that Keras saves, with few examples or many.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import keras
import models
import numpy
import probe

from keras_wavg import BEMA, EMA, FGE, LAWA, SWA, SWAG, Lookahead, PowerEMA

# By their names in files. Averages on the device are compiled for each test:
# `tests/slow/live/test_resume.py` has the other options of `EMA`.
AVERAGES = {
    "default": functools.partial(EMA, 0.9),
    "textbook": functools.partial(EMA, 0.9, bias_correction=False),
    "every_kernel": functools.partial(
        EMA, 0.9, every_steps=5, include="kernel"
    ),
    "textbook_late": functools.partial(
        EMA,
        0.9,
        every_steps=2,
        start_step=7,
        warmup=True,
        bias_correction=False,
    ),
    "before_the_start": functools.partial(EMA, 0.9, start_step=100),
    "before_the_first_update": functools.partial(
        EMA, 0.9, every_steps=100, bias_correction=False
    ),
    "on_the_host": functools.partial(EMA, 0.9, every_steps=2, device="cpu"),
    "lookahead": functools.partial(Lookahead, 5),
    "power_ema": functools.partial(PowerEMA, (0.05, 0.2), every_steps=3),
    "swa": SWA,
    "lawa": functools.partial(LAWA, 2),
    "lawa_late": functools.partial(LAWA, start_epoch=3),
    "lawa_every_other_epoch": functools.partial(
        LAWA, every_epochs=2, start_epoch=1
    ),
    "lawa_by_steps": functools.partial(LAWA, 2, every_steps=5, start_epoch=1),
    "swag": functools.partial(SWAG, rank=2),
    "swag_by_steps": functools.partial(SWAG, rank=3, every_steps=2),
    "fge": functools.partial(FGE, 4),
    "bema": functools.partial(BEMA, 5),
    "bema_late": functools.partial(BEMA, 2, start_step=9),
}
WITHOUT_AN_UPDATE = {"before_the_start", "before_the_first_update"}

State = dict[str, list[numpy.ndarray]]


def make(name: str, *, swap: bool = False) -> Any:
    """A new average."""
    # FGE has no argument `swap`: it is never swapped in.
    options = {} if name == "fge" else {"swap": swap}
    return AVERAGES[name](name=name, **options)


def make_several(names: Any, swapped: str | None = None) -> list[Any]:
    """New averages, of which only `swapped` is swapped in by `fit`."""
    return [make(name, swap=name == swapped) for name in names]


def random_walk(model: keras.Model, *averages: Any, steps: int = 4) -> None:
    """Change weights at random and update averages, without `fit`."""
    rng = numpy.random.default_rng(0)
    for average in averages:
        average.set_model(model)
    for _ in range(steps):
        values = [rng.normal(size=w.shape) for w in model.get_weights()]
        model.set_weights(values)
        for average in averages:
            average.update()


def weights_of(average: Any) -> list[numpy.ndarray]:
    """The averaged weights, or nothing while there is no average."""
    try:
        return average.get_weights()
    except ValueError:
        return []


def state(average: Any) -> list[numpy.ndarray]:
    """The average, the arrays kept besides it, and all counts."""
    found = [
        *weights_of(average),
        *itertools.chain(*probe.kept(average).values()),
        probe.counts(average),
    ]
    return [numpy.array(array) for array in found]


def values(variables: Any) -> list[numpy.ndarray]:
    """Copies of the values of variables."""
    return [numpy.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def full_state(model: Any, *averages: Any) -> State:
    """Restore raw weights; return them, the optimizer and the averages."""
    for average in averages:
        average.restore()
    return {
        "weights": values(model.weights),
        "optimizer": values(model.optimizer.variables),
    } | {average.name: state(average) for average in averages}


def differing(received: State, expected: State) -> list[str]:
    """The names of the entries that differ in any bit."""
    assert received.keys() == expected.keys()
    return [
        name
        for name, arrays in expected.items()
        if not models.equal(received[name], arrays)
    ]


# Saving and loading at any time

PLANS = st.lists(st.sampled_from(["step", "swap", "save"]), max_size=12)


@functools.cache
def two_models() -> tuple[keras.Model, keras.Model]:
    """Models that are not trained."""
    return models.dense(), models.dense()


def save_and_load_at_any_time(plan: list[str], name: str, path: Path) -> None:
    """Check that an average continues as one that was never saved.

    Args:
        plan: Actions, one of `PLANS`.
        name: Name of the average.
        path: Path of the file, which may be written repeatedly.
    """
    rng = numpy.random.default_rng(0)
    steady, moving = two_models()
    for model in (steady, moving):
        model.set_weights([w * 0 for w in model.get_weights()])
    one, other = make(name), make(name)
    one.set_model(steady)
    other.set_model(moving)
    for action in plan:
        if action == "swap":
            for average in (one, other):
                in_model = probe.is_in_model(average)
                average.restore() if in_model else average.apply()
        elif action == "step":
            one.restore()
            other.restore()
            weights = [rng.normal(size=w.shape) for w in steady.get_weights()]
            steady.set_weights(weights)
            moving.set_weights(weights)
            one.update()
            other.update()
        else:
            moving.save_weights(path)
            moving.set_weights([w + 1 for w in moving.get_weights()])
            other = make(name)
            other.set_model(moving)
            moving.load_weights(path)
        assert models.equal(moving.get_weights(), steady.get_weights())
        assert models.equal(weights_of(other), weights_of(one))
    one.restore()
    other.restore()
    assert models.equal(moving.get_weights(), steady.get_weights())
