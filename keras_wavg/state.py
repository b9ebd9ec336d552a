"""The state of an average in a saved model, and its validation.

A state is a flat dict of arrays:

- the integers of `Counts`, each of shape `()`;
- `average_<i>`, the average of the i-th averaged weight, unless the model
  holds the average and the file therefore contains it as the weight;
- `raw_<i>`, its raw value, if the model holds the average;
- `<name>_<i>`, an extra array of the method, see `Method.extra_names`.

So a file grows by one copy of the weights, whether the model holds the average
or not. Averages of half-precision weights are float32 and always included.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import keras
import numpy

VERSION = 3
"""The format version. Increment it if older readers would fail."""

_OF_VERSION_2 = ("place", "overwritten", "skipped")  # Counts since removed.
_MAX_COUNT = 2**31 - 1  # Counters are int32 on JAX.
_MAX_SAVED_COUNT = 2**30  # Leaves a margin for further training.


@dataclass(frozen=True)
class Counts:
    """The integers of a state. The names of the fields are keys in files.

    Args:
        version: The format version.
        now: The time, in optimizer steps.
        epochs: The number of epochs that have ended.
        pending: The number of steps, or epochs, since the last update.
        last: The time of the last update, in optimizer steps.
        steps: The number of optimizer steps, or samples, in the average.
        begun: 1 if the average has been started or updated, else 0.
        replaced: The number of trainable weights that were replaced while they
            held the average. If it is positive, the average restarts.
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
    """The state of an average.

    Args:
        counts: `Counts`.
        averages: Dict of averages by the index of their weight. Missing ones
            are in the model.
        raw: Dict of raw weights by the same index, for weights that hold the
            average.
        extra: Dict of the extra arrays of the method by name, each a dict by
            the same index.
        overwritten: Boolean, in files of version 2 whether the average is to
            be written into the trainable weights. Defaults to `False`.
    """

    counts: Counts
    averages: Mapping[int, Any]
    raw: Mapping[int, Any]
    extra: Mapping[str, Mapping[int, Any]]
    overwritten: bool = False

    def to_dict(
        self, convert: Callable[[Any, int | None], Any] = lambda array, _: array
    ) -> dict[str, Any]:
        """The state as a flat dict of arrays.

        Args:
            convert: Function from an array and the index of its weight, or
                `None` for a count, to a value of the dict. Defaults to the
                array.
        """
        counts = {
            name: convert(numpy.array(count), None)
            for name, count in asdict(self.counts).items()
        }
        kinds = {"average": self.averages, "raw": self.raw, **self.extra}
        return counts | {
            f"{kind}_{i}": convert(array, i)
            for kind, found in kinds.items()
            for i, array in found.items()
        }


def from_dict(
    arrays: Mapping[str, Any],
    variables: Sequence[Any],
    extra_names: Callable[[int], Sequence[str]],
) -> State:
    """Create a state from arrays, and validate it.

    Args:
        arrays: Dict of arrays.
        variables: The averaged Keras variables of the model.
        extra_names: See `Method.extra_names`.

    Returns:
        A `State`.

    Raises:
        ValueError: If an entry is missing, unknown or invalid, or if the
            format version is not supported.
    """
    arrays, overwritten = _of_this_version(arrays)
    counts = _counts(arrays)
    _require_possible(counts, variables)
    names = extra_names(counts.steps) if counts.begun else ()
    state = State(
        counts,
        _of_kind("average", arrays, variables),
        _of_kind("raw", arrays, variables),
        {name: _of_kind(name, arrays, variables) for name in names},
        overwritten,
    )
    _require_complete(state, variables)
    unknown = sorted(set(arrays) - set(state.to_dict()))
    if unknown:
        raise ValueError(
            "The saved average must have entries for the averaged weights of "
            f"the model only. Received: the unknown entries {unknown}, for "
            f"{len(variables)} averaged weights."
        )
    return state


def require_finite(state: State, variables: Sequence[Any]) -> None:
    """Refuse an average that is not finite where the raw weight is.

    Averages that were not updated in the last step are not checked.

    Args:
        state: A `State`.
        variables: The averaged Keras variables, loaded from the same file.

    Raises:
        ValueError: If an element of an average is NaN or infinite, but that of
            the raw weight is finite.
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
                "A saved average must be finite where its weight is. Received: "
                f"'average_{i}' of '{variable.path}' with NaN or infinite "
                "elements. The file is damaged."
            )


def holds_average(variable: Any) -> bool:
    """Whether a variable's dtype is that of its average, so none is rounded."""
    return variable.dtype in {"float32", "float64"}


def _of_this_version(
    arrays: Mapping[str, Any],
) -> tuple[Mapping[str, Any], bool]:
    """Arrays in the format of this version, and `State.overwritten`."""
    version = _integer("version", arrays)
    if version == VERSION:
        return arrays, False
    if version != 2:  # noqa: PLR2004
        raise ValueError(
            f"The saved average must be of format version 2 or {VERSION}. "
            f"Received: version={version}. Install the version of keras_wavg "
            "that wrote the file."
        )
    removed = {name: _integer(name, arrays) for name in _OF_VERSION_2}
    others = {k: array for k, array in arrays.items() if k not in removed}
    changed = {"version": numpy.array(VERSION), "replaced": numpy.array(0)}
    return others | changed, bool(removed["overwritten"])


def _require_possible(counts: Counts, variables: Sequence[Any]) -> None:
    """Refuse counts that no training can have."""
    is_ordered = not counts.steps or counts.steps <= counts.last <= counts.now
    is_small = (
        max(counts.now, counts.epochs, counts.pending) <= _MAX_SAVED_COUNT
    )
    is_valid = counts.begun <= 1 and counts.replaced <= len(variables)
    if not (is_ordered and is_small and is_valid):
        raise ValueError(
            "The counts of a saved average must be `steps` <= `last` <= `now` "
            f"<= {_MAX_SAVED_COUNT}, `begun` <= 1, and `replaced` at most the "
            f"{len(variables)} averaged weights. Received: {counts}. The file "
            "is damaged."
        )


def _counts(arrays: Mapping[str, Any]) -> Counts:
    return Counts(*(_integer(f.name, arrays) for f in fields(Counts)))


def _integer(name: str, arrays: Mapping[str, Any]) -> int:
    if name not in arrays:
        raise ValueError(
            f"The saved average must have the count `{name}`. Received: "
            f"{sorted(arrays)}. The file is damaged or was written by another "
            "program."
        )
    array = numpy.asarray(arrays[name])
    integer = array.shape == () and array.dtype.kind in "iu"
    if not integer or not 0 <= array <= _MAX_COUNT:
        raise ValueError(
            f"The count `{name}` of a saved average must be an integer in "
            f"[0, {_MAX_COUNT}]. Received: {array!r}"
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
            f"The saved average must have the shapes of the model's weights: "
            f"'{key}' must have the shape {tuple(variable.shape)} of "
            f"'{variable.path}'. Received: shape {tuple(array.shape)}."
        )
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"The saved average '{key}' of '{variable.path}' must have a "
            f"floating-point dtype. Received: dtype {dtype}."
        )


def _require_complete(state: State, variables: Sequence[Any]) -> None:
    started = state.counts.begun
    if state.raw and not started:
        raise ValueError(
            "Only an average that was started can be in the model. Received: "
            f"raw weights and begun={started}. The file is damaged."
        )
    for i, variable in enumerate(variables):
        in_model = i in state.raw and holds_average(variable)
        if started and not in_model and i not in state.averages:
            _refuse_without(f"average_{i}", variable)
        for name, found in state.extra.items():
            if i not in found:
                _refuse_without(f"{name}_{i}", variable)


def _refuse_without(key: str, variable: Any) -> NoReturn:
    raise ValueError(
        "The saved average must cover every averaged weight. Received: no "
        f"'{key}' for '{variable.path}'. The file has the average of another "
        "model, method or `include`, or is damaged."
    )
