"""What a file says about a running average, and the strict reading of it.

A state is a flat dict of arrays:

- the integers of `Counts`, each of shape `()`;
- `average_<i>`, the average of the i-th averaged weight, unless the model's own
  entry in the file is that average;
- `raw_<i>`, its raw value, where the average is in the model;
- `<name>_<i>`, whatever else the method keeps of it, see `Method.keeps`.

So a file grows by one copy of the weights, whichever of the two the model
holds. Averages of half-precision weights are float32, and always there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import keras
import numpy

VERSION = 3
"""Of the format: to be raised when an older reader would go wrong."""

_OF_VERSION_2 = ("place", "overwritten", "skipped")  # They are no more.
_LARGEST = 2**31 - 1  # What counts can be on JAX.
_ROOM = 2**30  # What is left of it for the training that goes on.


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
        begun: Whether there are averages, 0 or 1.
        replaced: How many trained weights somebody wrote to while they held
            the average: it is to begin anew.
    """

    version: int
    now: int
    epochs: int
    pending: int
    last: int
    steps: int
    begun: int
    replaced: int


@dataclass(frozen=True)
class State:
    """A running average as arrays.

    Args:
        counts: `Counts`.
        averages: Averages by the index of their weight; those that are missing
            are in the model.
        raw: Raw weights by the same index, of those that hold the average.
        kept: By name, what is kept besides the average, by the same index.
        overwritten: Boolean, of files of version 2: whether the trained weights
            became the average while those from before were being saved.
    """

    counts: Counts
    averages: Mapping[int, Any]
    raw: Mapping[int, Any]
    kept: Mapping[str, Mapping[int, Any]]
    overwritten: bool = False

    def to_dict(
        self, convert: Callable[[Any, int | None], Any] = lambda array, _: array
    ) -> dict[str, Any]:
        """The state as a flat dict of arrays.

        Args:
            convert: Function from an array and the index of its weight, or
                `None` for a count, to what is to be in the dict. Defaults to
                the array.
        """
        counts = {
            name: convert(numpy.array(count), None)
            for name, count in asdict(self.counts).items()
        }
        kinds = {"average": self.averages, "raw": self.raw, **self.kept}
        return counts | {
            f"{kind}_{i}": convert(array, i)
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
    arrays, overwritten = _of_this_version(arrays)
    counts = _counts(arrays)
    _require_possible(counts, variables)
    names = kept(counts.steps) if counts.begun else ()
    state = State(
        counts,
        _of_kind("average", arrays, variables),
        _of_kind("raw", arrays, variables),
        {name: _of_kind(name, arrays, variables) for name in names},
        overwritten,
    )
    _require_complete(state, variables)
    foreign = sorted(set(arrays) - set(state.to_dict()))
    if foreign:
        raise ValueError(
            "The saved average must be of this model's weights. Received: the "
            f"unknown entries {foreign}, for {len(variables)} averaged weights."
        )
    return state


def require_finite(state: State, variables: Sequence[Any]) -> None:
    """Refuse an average that is not finite where its weight is.

    Only an average that has just been updated is known to be finite there.

    Args:
        state: A `State`.
        variables: The averaged Keras variables, which hold what the same file
            has of them.

    Raises:
        ValueError: If an element of an average is NaN or infinite, and that of
            the raw weight is not.
    """
    counts = state.counts
    if not counts.steps or counts.last < counts.now:
        return
    ops = keras.ops
    for i, variable in enumerate(variables):
        average = state.averages.get(i, variable.value)
        raw = state.raw.get(i, variable.value)
        if ops.any(~ops.isfinite(average) & ops.isfinite(raw)):
            raise ValueError(
                "A saved average must be finite where its weight is. "
                f"Received: NaN or infinity in 'average_{i}', that of "
                f"'{variable.path}'. The file is damaged."
            )


def holds_average(variable: Any) -> bool:
    """Whether a variable's dtype is that of its average, so none is rounded."""
    return variable.dtype in {"float32", "float64"}


def _of_this_version(
    arrays: Mapping[str, Any],
) -> tuple[Mapping[str, Any], bool]:
    """Arrays of this version, and `State.overwritten`."""
    version = _integer("version", arrays)
    if version == VERSION:
        return arrays, False
    if version != 2:  # noqa: PLR2004
        raise ValueError(
            f"The saved average must be of format version 2 or {VERSION}. "
            f"Received: version={version}. Install the version of keras_wavg "
            "that wrote the file."
        )
    left = {name: _integer(name, arrays) for name in _OF_VERSION_2}
    kept = {k: array for k, array in arrays.items() if k not in left}
    changed = {"version": numpy.array(VERSION), "replaced": numpy.array(0)}
    return kept | changed, bool(left["overwritten"])


def _require_possible(counts: Counts, variables: Sequence[Any]) -> None:
    """Refuse counts that no training can have had."""
    is_ordered = not counts.steps or counts.steps <= counts.last <= counts.now
    has_room = max(counts.now, counts.epochs, counts.pending) <= _ROOM
    is_part = counts.begun <= 1 and counts.replaced <= len(variables)
    if not (is_ordered and has_room and is_part):
        raise ValueError(
            "The counts of a saved average must be `steps` <= `last` <= `now` "
            f"<= {_ROOM}, `begun` <= 1, and `replaced` at most the "
            f"{len(variables)} averaged weights. Received: {counts}. The file "
            "is damaged."
        )


def _counts(arrays: Mapping[str, Any]) -> Counts:
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
    begun = state.counts.begun
    if state.raw and not begun:
        raise ValueError(
            "Only an average that has begun can be in the model. Received: raw "
            f"weights, with begun={begun}. The file is damaged."
        )
    for i, variable in enumerate(variables):
        in_model = i in state.raw and holds_average(variable)
        if begun and not in_model and i not in state.averages:
            _refuse_without(f"average_{i}", variable)
        for name, found in state.kept.items():
            if i not in found:
                _refuse_without(f"{name}_{i}", variable)


def _refuse_without(key: str, variable: Any) -> NoReturn:
    raise ValueError(
        "The saved average must cover every averaged weight. Received: no "
        f"'{key}' for '{variable.path}'. It is the average of another model, "
        "another method or another `include`, or the file is damaged."
    )
