"""What no public name tells of a callback: the only private access of tests."""

from typing import Any, NamedTuple

import keras
import numpy

from keras_wavg import backend, swapping
from keras_wavg.saveable import saved_averages

Arrays = list[numpy.ndarray]


class Counts(NamedTuple):
    """What a callback has counted for its model.

    Args:
        now: Optimizer steps that were made.
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
    running, shadow = average._running, average._shadow
    times = (running.clock.now, running.epochs, running._pending)
    return Counts(*times, *(shadow.counters if shadow else (0, 0)))


def has_begun(average: Any) -> bool:
    """Whether there are averages, of no step yet or of some."""
    return average._shadow is not None


def is_in_model(average: Any) -> bool:
    """Whether the average was put in the model and not taken out since."""
    return average._is_in_model()


def raw_weights(average: Any) -> Arrays:
    """The raw values of the averaged weights, while the average is in."""
    return [*map(keras.ops.convert_to_numpy, raw_tensors(average))]


def raw_tensors(average: Any) -> list[Any]:
    """The same, as the tensors or arrays that are kept."""
    return list(swapping.raw_values(variables(average)).values())


def tensors(average: Any) -> list[Any]:
    """Copies of the averages, as tensors of the backend."""
    return average._shadow.averages.read()


def stored(average: Any) -> list[tuple[Any, Any]]:
    """Each averaged variable's value on JAX, and the array of its average."""
    averages = average._shadow.averages
    arrays = averages._packing.unpack(averages._arrays[0])
    return list(zip(averages._variables, arrays, strict=True))


def buffers(average: Any) -> list[Any]:
    """The arrays or tensors in which the averages lie."""
    averages = average._shadow.averages
    return (getattr(averages, "_arrays", None) or averages._averages)[0]


def kept(average: Any) -> dict[str, Arrays]:
    """What a method keeps besides its average, by name."""
    shadow = average._shadow
    if shadow is None or not shadow._plan.method.keeps(shadow.steps):
        return {}
    return {
        name: [*map(keras.ops.convert_to_numpy, arrays)]
        for name, arrays in shadow.averages.kept().items()
    }


def variables(average: Any) -> list[Any]:
    """The averaged Keras variables."""
    return average._shadow._variables


def program(average: Any) -> str:
    """What XLA makes of an update on JAX."""
    averages = average._shadow.averages
    weights = [variable.value for variable in averages._variables]
    update = averages._update.lower(
        averages._arrays, averages._counters, weights, 1, None, 1
    )
    return update.compile().as_text()


def attach(model: Any) -> None:
    """Let the variables hold the weights of now, after an error on JAX too."""
    backend.attach_weights(model)


def indices_in(model: Any) -> set[int]:
    """The indices of the weights that hold an average."""
    raw = swapping.raw_values(model.weights)
    return {i for i in raw if _is_held(model.weights[i])}


def _is_held(variable: Any) -> bool:
    """Whether nobody has written to a variable that holds an average."""
    put = swapping._swapped[id(variable)].put
    return all(backend.same_values([variable.value], [put]))


def raw_weights_of(model: Any) -> Arrays:
    """All weights, as they are without an average in the model."""
    attach(model)
    raw = swapping.raw_values(model.weights)
    values = [
        raw[i] if i in raw and _is_held(v) else v.value
        for i, v in enumerate(model.weights)
    ]
    return [*map(keras.ops.convert_to_numpy, values)]


def detach(model: Any) -> None:
    """Let a model be as if it had never been averaged."""
    for owner in swapping.owners(model.weights):
        swapping.forget(owner)
    for attribute in saved_averages(model):
        object.__delattr__(model, attribute)
