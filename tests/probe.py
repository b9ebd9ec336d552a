"""The private state of callbacks: the only private access of the tests."""

from typing import Any, NamedTuple

import keras
import numpy

from keras_wavg import backend, swapping
from keras_wavg.saving import saved_averages

Arrays = list[numpy.ndarray]


class Counts(NamedTuple):
    """The counts of a callback for its model.

    Args:
        now: Optimizer steps.
        epochs: Epochs that have ended.
        pending: Steps, or epochs, since the last sample.
        last: The time of the last sample.
        averaged: Optimizer steps, or samples, that the average covers.
    """

    now: int
    epochs: int
    pending: int
    last: int
    averaged: int


def counts(average: Any) -> Counts:
    """All counts of a callback."""
    current, averaged = average._current, average._averaged
    times = (current.clock.now, current.epochs, current._pending)
    return Counts(*times, *(averaged.counters if averaged else (0, 0)))


def has_started(average: Any) -> bool:
    """Whether the average has started, perhaps without an update yet."""
    return average._averaged is not None


def is_in_model(average: Any) -> bool:
    """Whether the average is swapped in."""
    return average._is_in_model()


def raw_weights(average: Any) -> Arrays:
    """Raw values of the averaged weights, while the average is swapped in."""
    return [*map(keras.ops.convert_to_numpy, raw_tensors(average))]


def raw_tensors(average: Any) -> list[Any]:
    """The same, as the tensors or arrays that are stored."""
    return list(swapping.raw_values(variables(average)).values())


def tensors(average: Any) -> list[Any]:
    """Copies of the averages, as tensors of the backend."""
    return average._averaged.averages.read()


def stored(average: Any) -> list[tuple[Any, Any]]:
    """Each averaged variable's value on JAX, and the array of its average."""
    averages = average._averaged.averages
    arrays = averages._packing.unpack(averages._arrays[0])
    return list(zip(averages._variables, arrays, strict=True))


def buffers(average: Any) -> list[Any]:
    """The arrays or tensors that store the averages."""
    averages = average._averaged.averages
    return (getattr(averages, "_arrays", None) or averages._averages)[0]


def kept(average: Any) -> dict[str, Arrays]:
    """Arrays that a method keeps besides its average, by name."""
    averaged = average._averaged
    if averaged is None:
        return {}
    if not averaged._plan.method.extra_names(averaged.steps):
        return {}
    return {
        name: [*map(keras.ops.convert_to_numpy, arrays)]
        for name, arrays in averaged.averages.extra_arrays().items()
    }


def variables(average: Any) -> list[Any]:
    """The averaged Keras variables."""
    return average._averaged._variables


def program(average: Any) -> str:
    """The program that XLA compiles for an update on JAX."""
    averages = average._averaged.averages
    weights = [variable.value for variable in averages._variables]
    update = averages._update.lower(
        averages._arrays, averages._counters, weights, 1, None, 1
    )
    return update.compile().as_text()


def attach(model: Any) -> None:
    """Make the variables hold the current weights, even after an error."""
    backend.sync_weights(model)


def swapped_indices(model: Any) -> set[int]:
    """The indices of the weights that hold an average."""
    raw = swapping.raw_values(model.weights)
    return {i for i in raw if _is_held(model.weights[i])}


def _is_held(variable: Any) -> bool:
    """Whether a variable still holds its average."""
    put = swapping._swapped[id(variable)].value
    return all(backend.same_values([variable.value], [put]))


def raw_weights_of(model: Any) -> Arrays:
    """All weights, as they are when no average is swapped in."""
    attach(model)
    raw = swapping.raw_values(model.weights)
    values = [
        raw[i] if i in raw and _is_held(v) else v.value
        for i, v in enumerate(model.weights)
    ]
    return [*map(keras.ops.convert_to_numpy, values)]


def detach(model: Any) -> None:
    """Remove all averages from a model."""
    for owner in swapping.owners(model.weights):
        swapping.forget(owner)
    for attribute in saved_averages(model):
        object.__delattr__(model, attribute)


def update_as_on_an_accelerator(monkeypatch: Any) -> None:
    """Have averages on torch use the operations of devices other than a CPU.

    A meta tensor has no values, so this fails if choosing them reads one.
    """
    import torch

    from keras_wavg.averages import torch as averages

    move = averages._fastest_move(torch.empty(1, device="meta"))
    monkeypatch.setattr(averages, "_fastest_move", lambda _: move)
