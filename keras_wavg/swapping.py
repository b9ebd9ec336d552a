"""Records which variables hold an average, and their raw values.

While an average is swapped into a variable, the variable has one entry here:
its raw value, the value that was swapped in, and the owner of the average.
Entries belong to variables, so models may share layers, and contexts can be
nested in any order. Before each swap, every variable is compared with the value
that was swapped in (NaN equals NaN). If it differs, the variable was
overwritten and keeps its new value:

- if the weight is trainable, it was replaced, and the owner is notified;
- if only other weights were overwritten, they are state that changes during
  inference, such as a counter or a cache. Later swaps exclude it.

The entries contain copies, never the arrays of a variable: JAX donates these to
its next step.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import keras

from keras_wavg.backend import assign, device_copies, same_values
from keras_wavg.keras_private import has_value
from keras_wavg.warning import warn

Copies = Callable[[Sequence[Any]], list[Any]]
"""Function that copies the values of variables."""
Owner = Any
"""The owner of an average, or `None`: an object with a list `replaced` of paths
and with `counters`, which change whenever the average does."""


def _no_owner() -> None:
    """Reference to no owner."""


@dataclass
class Swapped:
    """The entry of a variable that holds an average.

    Args:
        variable: Weak reference to the variable. When the variable is deleted,
            so is the entry.
        raw: The raw value.
        copies: See `Copies`, decides where `raw` and `value` are stored.
        value: The value that was swapped in, or `None` during a swap. If that
            is interrupted, the raw value is restored.
        owner: Weak reference to the owner.
    """

    variable: Any
    raw: Any
    copies: Copies
    value: Any = None
    owner: Callable[[], Owner] = _no_owner


class Contents(NamedTuple):
    """What a variable holds.

    Args:
        variable: A Keras variable.
        entry: `Swapped`, or `None` for the raw value.
        writes: Integer, how often the variable was overwritten while it held
            an average.
        counters: The counters of the owner.
    """

    variable: Any
    entry: Swapped | None
    writes: int
    counters: Any


_swapped: dict[int, Swapped] = {}
_inference_state: dict[int, Any] = {}
_writes: dict[int, tuple[Any, int]] = {}


def swap_in(
    variables: Sequence[Any],
    values: Sequence[Any],
    owner: Owner = None,
    copies: Copies = device_copies,
) -> None:
    """Swap values into variables, and keep the raw values.

    Args:
        variables: Keras variables.
        values: The new values, with any floating-point dtype.
        owner: See `Owner`. Defaults to `None`.
        copies: See `Copies`. Defaults to copies on the devices.
    """
    discard_overwritten(variables)
    pairs = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if id(variable) not in _inference_state
    ]
    chosen = [variable for variable, _ in pairs]
    new = [v for v in chosen if id(v) not in _swapped]
    _add_entries(new, copies(new), copies)
    _assign(pairs)
    _record(chosen, _reference(owner))


def restore(variables: Sequence[Any]) -> None:
    """Restore the raw values of variables that were not overwritten.

    Args:
        variables: Keras variables. Those without an average are not changed.
    """
    discard_overwritten(variables)
    swapped = [v for v in variables if id(v) in _swapped]
    _assign([(v, _swapped[id(v)].raw) for v in swapped])
    for variable in swapped:
        del _swapped[id(variable)]


@contextlib.contextmanager
def preserved(variables: Sequence[Any]) -> Iterator[None]:
    """Context after which variables hold what they held on entry.

    That is another average, or the raw values. Variables that are overwritten
    in the context keep their new values.

    Args:
        variables: Keras variables.

    Yields:
        `None`.
    """
    before = contents(variables)
    try:
        yield
    finally:
        restore_contents(before)


@contextlib.contextmanager
def swapped_in(
    variables: Sequence[Any],
    values: Sequence[Any],
    owner: Owner = None,
    copies: Copies = device_copies,
) -> Iterator[None]:
    """Context in which values are swapped into variables.

    Args:
        variables: See `swap_in`.
        values: See `swap_in`.
        owner: See `swap_in`.
        copies: See `swap_in`.

    Yields:
        `None`.
    """
    with preserved(variables):
        swap_in(variables, values, owner, copies)
        yield


@contextlib.contextmanager
def raw_swapped_in(variables: Sequence[Any]) -> Iterator[None]:
    """Context in which variables hold their raw values.

    Args:
        variables: Keras variables.

    Yields:
        `None`.
    """
    discard_overwritten(variables)
    swapped = [v for v in variables if id(v) in _swapped]
    with swapped_in(swapped, _copied([_swapped[id(v)].raw for v in swapped])):
        yield


def contents(variables: Sequence[Any]) -> list[Contents]:
    """What variables hold now, for `restore_contents`."""
    discard_overwritten(variables)
    entries = [_swapped.get(id(v)) for v in variables]
    counters = _counters(filter(None, entries))
    return [
        Contents(v, replace(entry), _writes_to(v), counters[id(entry.owner())])
        if entry
        else Contents(v, None, _writes_to(v), None)
        for v, entry in zip(variables, entries, strict=True)
    ]


def restore_contents(before: Sequence[Contents]) -> None:
    """Restore what variables held, as returned by `contents`.

    Variables that were overwritten since then keep their values, and so do
    those whose average was updated.
    """
    restore([v for v, entry, *_ in before if entry is None])
    averaged = [(v, entry, *r) for v, entry, *r in before if entry is not None]
    discard_overwritten([v for v, *_ in averaged])
    counters_now = _counters(entry for _, entry, *_ in averaged)
    by_owner: dict[int, list[tuple[Any, Swapped]]] = {}
    for variable, entry, writes, counters in averaged:
        owner = entry.owner()
        if _writes_to(variable) != writes:
            if variable.trainable:
                _notify(owner, variable)
        elif counters_now[id(owner)] == counters:
            by_owner.setdefault(id(owner), []).append((variable, entry))
    for pairs in by_owner.values():
        variables, entries = zip(*pairs, strict=True)
        values = _copied([entry.value for entry in entries])
        swap_in(variables, values, entries[0].owner(), entries[0].copies)


def register(
    variables: Sequence[Any],
    raw: Sequence[Any],
    owner: Owner,
    copies: Copies = device_copies,
) -> None:
    """Record that variables already hold an average, loaded from a file.

    Args:
        variables: Keras variables.
        raw: The raw values.
        owner: See `Owner`.
        copies: See `swap_in`.
    """
    _add_entries(variables, raw, copies)
    _record(variables, _reference(owner))


def accept_current(variables: Sequence[Any]) -> None:
    """Record the current values of variables as the values swapped in.

    Args:
        variables: Keras variables, measured for the average in the model.
            Those without an average are not changed.
    """
    for variable in variables:
        if id(variable) in _swapped:
            _record([variable], _swapped[id(variable)].owner)


def discard_overwritten(variables: Sequence[Any]) -> None:
    """Discard the entries of variables that were overwritten.

    Args:
        variables: Keras variables.
    """
    if not _swapped:
        return
    entries = [(v, _swapped[id(v)]) for v in variables if id(v) in _swapped]
    complete = [
        (v, entry)
        for v, entry in entries
        if entry.value is not None and has_value(v)
    ]
    same = same_values(
        [v.value for v, _ in complete], [entry.value for _, entry in complete]
    )
    overwritten = [
        pair
        for pair, is_same in zip(complete, same, strict=True)
        if not is_same
    ]
    for variable, entry in overwritten:
        del _swapped[id(variable)]
        reference, writes = _tied(variable, _writes), _writes_to(variable)
        _writes[id(variable)] = reference, writes + 1
        if variable.trainable:
            _notify(entry.owner(), variable)
    # If weights were trained or loaded, so were their statistics.
    if not any(variable.trainable for variable, _ in overwritten):
        _exclude([variable for variable, _ in overwritten])


def forget(owner: Owner) -> None:
    """Discard all entries of an owner. The variables keep their values."""
    for key in [k for k, entry in _swapped.items() if entry.owner() is owner]:
        del _swapped[key]


def any_swapped(variables: Sequence[Any]) -> bool:
    """Whether an average was swapped into any of the variables."""
    return bool(_swapped) and any(id(v) in _swapped for v in variables)


def owners(variables: Sequence[Any]) -> list[Owner]:
    """The owners of the averages in variables, without duplicates."""
    entries = (_swapped.get(id(v)) for v in variables)
    found = [entry.owner() for entry in entries if entry]
    return list({id(o): o for o in found if o is not None}.values())


def raw_values(variables: Sequence[Any], owner: Owner = None) -> dict[int, Any]:
    """The raw values of variables that hold an average, by their index.

    Args:
        variables: Keras variables.
        owner: The owner of the averages. Defaults to `None`, any owner.

    Returns:
        Dict from integers to arrays.
    """
    entries = [_swapped.get(id(v)) for v in variables]
    return {
        i: entry.raw
        for i, entry in enumerate(entries)
        if entry and (owner is None or entry.owner() is owner)
    }


def _counters(entries: Iterable[Swapped]) -> dict[int, Any]:
    """The counters of the owners of entries, by the owner's id."""
    found = {id(o): o for o in (entry.owner() for entry in entries)}
    return {key: o and o.counters for key, o in found.items()}


def _add_entries(
    variables: Sequence[Any], raw: Sequence[Any], copies: Copies
) -> None:
    for variable, value in zip(variables, raw, strict=True):
        reference = _tied(variable, _swapped)
        _swapped[id(variable)] = Swapped(reference, value, copies)


def _assign(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Assign values. If this is interrupted, raw values are restored later."""
    for variable, _ in pairs:
        _swapped[id(variable)].value = None
    assign([v for v, _ in pairs], [value for _, value in pairs])


def _copied(values: Sequence[Any]) -> list[Any]:
    # JAX donates the arrays of the model, and these are still needed.
    return [keras.ops.copy(value) for value in values]


def _record(variables: Sequence[Any], owner: Callable[[], Owner]) -> None:
    for variable in variables:
        entry = _swapped[id(variable)]
        (entry.value,) = entry.copies([variable])
        entry.owner = owner


def _writes_to(variable: Any) -> int:
    return _writes.get(id(variable), (None, 0))[1]


def _tied(variable: Any, entries: dict[int, Any]) -> Any:
    """Weak reference that deletes the entry together with the variable."""
    key = id(variable)
    return weakref.ref(variable, lambda _: entries.pop(key, None))


def _reference(owner: Owner) -> Callable[[], Owner]:
    # Weak, because the owner refers to the variables.
    return _no_owner if owner is None else weakref.ref(owner)


def _notify(owner: Owner, variable: Any) -> None:
    if owner is not None:
        owner.replaced.append(variable.path)


def _exclude(state: Sequence[Any]) -> None:
    """Exclude variables that change during inference from later swaps."""
    for variable in state:
        _inference_state[id(variable)] = _tied(variable, _inference_state)
    if state:
        more = f" and {len(state) - 1} more" if len(state) > 1 else ""
        warn(
            f"The weight '{state[0].path}'{more}, which is not trainable, "
            "changed while an average was in the model. It keeps its new "
            "value, and its average is no longer swapped in. If the new value "
            "depends on the old one, exclude the weight from the average with "
            "`include`.",
        )
