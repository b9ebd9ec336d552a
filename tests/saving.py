"""Averages of every kind, and means to tell whether a file gave all of it back.

For the tests of files that Keras writes of a model, with few examples or many.
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

# By the names that they have in files. What is on the device is compiled for
# each test: `EMA` has its other options in `tests/slow/live/test_resume.py`.
AVERAGES = {
    "default": functools.partial(EMA, 0.9),
    "textbook": functools.partial(EMA, 0.9, bias_correction=False),
    "every_kernel": functools.partial(EMA, 0.9, every=5, include="kernel"),
    "textbook_late": functools.partial(
        EMA, 0.9, every=2, start=7, warmup=True, bias_correction=False
    ),
    "not_begun": functools.partial(EMA, 0.9, start=100),
    "begun": functools.partial(EMA, 0.9, every=100, bias_correction=False),
    "on_the_host": functools.partial(EMA, 0.9, every=2, device="cpu"),
    "lookahead": functools.partial(Lookahead, 5),
    "power_ema": functools.partial(PowerEMA, (0.05, 0.2), every=3),
    "swa": SWA,
    "lawa": functools.partial(LAWA, 2),
    "lawa_late": functools.partial(LAWA, start_epoch=3),
    "lawa_every_other_epoch": functools.partial(LAWA, every=2, start_epoch=1),
    "lawa_by_steps": functools.partial(LAWA, 2, every_steps=5, start_epoch=1),
    "swag": functools.partial(SWAG, rank=2),
    "swag_by_steps": functools.partial(SWAG, rank=3, every_steps=2),
    "fge": functools.partial(FGE, 4),
    "bema": functools.partial(BEMA, 5),
    "bema_late": functools.partial(BEMA, 2, start=9),
}
WITHOUT_AN_UPDATE = {"not_begun", "begun"}

Snapshot = dict[str, list[numpy.ndarray]]


def make(name: str, *, swap: bool = False) -> Any:
    """A new average."""
    # There is no option of FGE, which is never swapped in.
    options = {} if name == "fge" else {"swap": swap}
    return AVERAGES[name](name=name, **options)


def make_several(names: Any, swapped: str | None = None) -> list[Any]:
    """New averages, of which one at most goes into the model in `fit`."""
    return [make(name, swap=name == swapped) for name in names]


def walk(model: keras.Model, *averages: Any, steps: int = 4) -> None:
    """Weights that move, and averages of them, where `fit` is not needed."""
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
    """The average, what is kept besides it, and all counts."""
    found = [
        *weights_of(average),
        *itertools.chain(*probe.kept(average).values()),
        probe.counts(average),
    ]
    return [numpy.array(array) for array in found]


def values(variables: Any) -> list[numpy.ndarray]:
    """Copies of what variables hold."""
    return [numpy.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def snapshot(model: Any, *averages: Any) -> Snapshot:
    """Raw weights, optimizer and averages, by name; these are taken out."""
    for average in averages:
        average.restore()
    return {
        "weights": values(model.weights),
        "optimizer": values(model.optimizer.variables),
    } | {average.name: state(average) for average in averages}


def differing(received: Snapshot, expected: Snapshot) -> list[str]:
    """The names of what is not the same, bit for bit."""
    assert received.keys() == expected.keys()
    return [
        name
        for name, arrays in expected.items()
        if not models.equal(received[name], arrays)
    ]


# At any time

PLANS = st.lists(st.sampled_from(["step", "swap", "save"]), max_size=12)


@functools.cache
def two_models() -> tuple[keras.Model, keras.Model]:
    """Models that are not trained."""
    return models.dense(), models.dense()


def save_and_load_at_any_time(plan: list[str], name: str, path: Path) -> None:
    """Check that an average goes on as one that was never saved does.

    Args:
        plan: What happens: of `PLANS`.
        name: Of the average.
        path: Of the file, which may be written again and again.
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
