"""What a file says about a running average, and the strict reading of it.

A state is a flat dict of arrays:

- the integers of `Counts`, each of shape `()`;
- `average_<i>`, the average of the i-th averaged weight, unless the model's own
  entry in the file is that average;
- `raw_<i>`, its raw value, where the average is in the model;
- `<name>_<i>`, whatever else the method keeps of it, see `Plan.kept`.

So a file grows by one copy of the weights, whichever of the two the model
holds. Averages of half-precision weights are float32, and always there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import keras
import numpy

VERSION = 2
"""Of the format: to be raised when an older reader would go wrong."""

_LARGEST = 2**31 - 1  # What counts can be on JAX.


@dataclass(frozen=True)
class Counts:
    """The integers beside an average.

    Args:
        version: The format.
        now: The time, in optimizer steps.
        epochs: The time, in epochs that have ended.
        pending: The steps, or epochs, that no update has covered yet.
        last: The time of the last update.
        steps: The optimizer steps, or samples, that the average covers.
        skipped: The updates left out because a weight was NaN or infinite.
        begun: Whether there are averages, 0 or 1.
        place: 0 while the average is out of the model, else its place, counted
            from 1, among the averages in it.
        overwritten: Whether the trained weights became the average, 0 or 1,
            while those from before were being saved.
    """

    version: int
    now: int
    epochs: int
    pending: int
    last: int
    steps: int
    skipped: int
    begun: int
    place: int
    overwritten: int


@dataclass(frozen=True)
class State:
    """A running average as arrays.

    Args:
        counts: `Counts`.
        averages: Averages by the index of their weight; those that are missing
            are in the model.
        raw: Raw weights by the same index, or nothing.
        kept: By name, what is kept besides the average, by the same index.
    """

    counts: Counts
    averages: Mapping[int, Any]
    raw: Mapping[int, Any]
    kept: Mapping[str, Mapping[int, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The state as a flat dict of arrays."""
        counts = {k: numpy.array(n) for k, n in asdict(self.counts).items()}
        kinds = {"average": self.averages, "raw": self.raw, **self.kept}
        return counts | {
            f"{kind}_{i}": array
            for kind, found in kinds.items()
            for i, array in found.items()
        }


def from_dict(
    arrays: Mapping[str, Any],
    variables: Sequence[Any],
    kept: Callable[[int], Sequence[str]],
) -> State:
    """Read a state, and refuse what is not one of these variables.

    Args:
        arrays: Dict of arrays.
        variables: The averaged Keras variables of the model.
        kept: See `keras_wavg.plan.Plan`.

    Returns:
        A `State`.

    Raises:
        ValueError: If anything is missing, too much, of another shape or kind,
            or of another format.
    """
    counts = _counts(arrays)
    if counts.place and not counts.begun:
        raise ValueError(
            "Only an average that has begun can be in the model. Received: "
            f"place={counts.place}, begun={counts.begun}. The file is damaged."
        )
    names = kept(counts.steps) if counts.begun else ()
    state = State(
        counts,
        _of_kind("average", arrays, variables),
        _of_kind("raw", arrays, variables),
        {name: _of_kind(name, arrays, variables) for name in names},
    )
    _require_complete(state, variables)
    foreign = sorted(set(arrays) - set(state.to_dict()))
    if foreign:
        raise ValueError(
            "The saved average must be of this model's weights. Received: the "
            f"unknown entries {foreign}, for {len(variables)} averaged weights."
        )
    return state


def holds_average(variable: Any) -> bool:
    """Whether a variable's dtype is that of its average, so none is rounded."""
    return variable.dtype in {"float32", "float64"}


def _counts(arrays: Mapping[str, Any]) -> Counts:
    version = _integer("version", arrays)
    if version != VERSION:
        raise ValueError(
            f"The saved average must be of format version {VERSION}. Received: "
            f"version={version}. Install the version of keras_wavg that wrote "
            "the file."
        )
    return Counts(*(_integer(f.name, arrays) for f in fields(Counts)))


def _integer(name: str, arrays: Mapping[str, Any]) -> int:
    if name not in arrays:
        raise ValueError(
            f"The saved average must have the count `{name}`. Received: "
            f"{sorted(arrays)}. The file is damaged, or written by another "
            "program."
        )
    array = numpy.asarray(arrays[name])
    integer = array.shape == () and array.dtype.kind in "iu"
    if not integer or not 0 <= array <= _LARGEST:
        raise ValueError(
            f"The count `{name}` of a saved average must be an integer in "
            f"[0, {_LARGEST}]. Received: {array!r}"
        )
    return int(array)


def _of_kind(
    kind: str, arrays: Mapping[str, Any], variables: Sequence[Any]
) -> dict[int, Any]:
    found = {}
    for i, variable in enumerate(variables):
        key = f"{kind}_{i}"
        if key in arrays:
            _require_like(key, arrays[key], variable)
            found[i] = arrays[key]
    return found


def _require_like(key: str, array: Any, variable: Any) -> None:
    dtype = keras.backend.standardize_dtype(array.dtype)
    if tuple(array.shape) != tuple(variable.shape):
        raise ValueError(
            f"The saved average must be of this model's weights. '{key}' is to "
            f"be that of '{variable.path}', with shape "
            f"{tuple(variable.shape)}. Received: shape {tuple(array.shape)}."
        )
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"A saved average must have a floating-point dtype. '{key}' is to "
            f"be that of '{variable.path}'. Received: dtype {dtype}."
        )


def _require_complete(state: State, variables: Sequence[Any]) -> None:
    begun, place = state.counts.begun, state.counts.place
    for i, variable in enumerate(variables):
        in_model = place and holds_average(variable)
        if begun and not in_model and i not in state.averages:
            _refuse_without(f"average_{i}", variable)
        if place and i not in state.raw:
            _refuse_without(f"raw_{i}", variable)
        for name, found in state.kept.items():
            if i not in found:
                _refuse_without(f"{name}_{i}", variable)


def _refuse_without(key: str, variable: Any) -> NoReturn:
    raise ValueError(
        "The saved average must cover every averaged weight. Received: no "
        f"'{key}' for '{variable.path}'. It is the average of another model, "
        "another method or another `include`, or the file is damaged."
    )
