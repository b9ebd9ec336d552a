"""Which weights hold an average now, and what their raw values are.

While an average is in a variable, the variable has one entry here: its raw
value, what was put in, and whose average it is. The variable is the key, so
models may share layers, and contexts nest in any way. Each variable alone is
asked whether it still holds what was put in (NaN equals NaN). If not, somebody
wrote to it, and what they wrote stays:

- a weight that gradients train was replaced, and the owner of the average is
  told;
- where only others were written to, they are state that changes at inference,
  such as a counter or a cache: later swaps leave it alone.

What is kept here are copies, never the arrays that a variable holds: JAX
donates these to its next step.
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
"""Function from variables to copies of their values."""
Owner = Any
"""Whose average it is, or `None`: an object with a list `replaced` of paths and
with `counters`, which are others once its average has changed."""


def _nobody() -> None:
    """Reference to no owner."""


@dataclass
class Swapped:
    """A variable that holds an average.

    Args:
        variable: Weak reference to the variable, whose end is the entry's.
        raw: Its raw value.
        put: What was put in, or `None` while a swap is going on: if that is
            interrupted, the raw value is the right one.
        owner: Weak reference to the owner.
        copies: See `Copies`: where `raw` and `put` are.
    """

    variable: Any
    raw: Any
    copies: Copies
    put: Any = None
    owner: Callable[[], Owner] = _nobody


class Found(NamedTuple):
    """What a variable held.

    Args:
        variable: A Keras variable.
        entry: `Swapped`, or `None` for its raw value.
        writes: How often somebody had written to it while it held an average.
        counters: Those of the owner.
    """

    variable: Any
    entry: Swapped | None
    writes: int
    counters: Any


_swapped: dict[int, Swapped] = {}
_inference_state: dict[int, Any] = {}
_writes: dict[int, tuple[Any, int]] = {}


def put_in(
    variables: Sequence[Any],
    values: Sequence[Any],
    owner: Owner = None,
    copies: Copies = device_copies,
) -> None:
    """Put values in variables. Their raw values are kept once.

    Args:
        variables: Keras variables.
        values: Their new values, of any floating dtype.
        owner: See `Owner`.
        copies: See `Copies`, where raw values and averages are kept.
    """
    settle(variables)
    pairs = [
        (variable, value)
        for variable, value in zip(variables, values, strict=True)
        if id(variable) not in _inference_state
    ]
    chosen = [variable for variable, _ in pairs]
    fresh = [v for v in chosen if id(v) not in _swapped]
    for variable, raw in zip(fresh, copies(fresh), strict=True):
        _swapped[id(variable)] = Swapped(_tied(variable, _swapped), raw, copies)
    _assign(pairs)
    _remember(chosen, _reference(owner))


def give_back(variables: Sequence[Any]) -> None:
    """Give variables their raw values back, unless somebody wrote to them.

    Args:
        variables: Keras variables. Those without an average stay as they are.
    """
    settle(variables)
    swapped = [v for v in variables if id(v) in _swapped]
    _assign([(v, _swapped[id(v)].raw) for v in swapped])
    for variable in swapped:
        del _swapped[id(variable)]


@contextlib.contextmanager
def kept(variables: Sequence[Any]) -> Iterator[None]:
    """Context after which variables hold what they held on entering.

    That is another average, or their raw values. What somebody wrote in the
    context stays.

    Args:
        variables: See `put_in`.

    Yields:
        `None`.
    """
    before = remembered(variables)
    try:
        yield
    finally:
        put_back(before)


@contextlib.contextmanager
def holding(
    variables: Sequence[Any],
    values: Sequence[Any],
    owner: Owner = None,
    copies: Copies = device_copies,
) -> Iterator[None]:
    """Context in which variables hold other values, and `kept`.

    Args:
        variables: See `put_in`.
        values: See `put_in`.
        owner: See `put_in`.
        copies: See `put_in`.

    Yields:
        `None`.
    """
    with kept(variables):
        put_in(variables, values, owner, copies)
        yield


@contextlib.contextmanager
def holding_raw(variables: Sequence[Any]) -> Iterator[None]:
    """Context in which variables hold their raw values.

    Args:
        variables: See `put_in`.

    Yields:
        `None`.
    """
    settle(variables)
    swapped = [v for v in variables if id(v) in _swapped]
    with holding(swapped, _copies([_swapped[id(v)].raw for v in swapped])):
        yield


def remembered(variables: Sequence[Any]) -> list[Found]:
    """What variables hold now, for `put_back`."""
    settle(variables)
    entries = [_swapped.get(id(v)) for v in variables]
    counters = _counters(filter(None, entries))
    return [
        Found(v, replace(entry), _writes_to(v), counters[id(entry.owner())])
        if entry
        else Found(v, None, _writes_to(v), None)
        for v, entry in zip(variables, entries, strict=True)
    ]


def put_back(before: Sequence[Found]) -> None:
    """Let variables hold what they held when they were `remembered`.

    What somebody wrote since then stays, and so does what variables hold
    since the average that they held was updated.
    """
    give_back([v for v, entry, *_ in before if entry is None])
    averaged = [(v, entry, *r) for v, entry, *r in before if entry is not None]
    settle([v for v, *_ in averaged])
    counters_now = _counters(entry for _, entry, *_ in averaged)
    by_owner: dict[int, list[tuple[Any, Swapped]]] = {}
    for variable, entry, writes, counters in averaged:
        owner = entry.owner()
        if _writes_to(variable) != writes:
            if variable.trainable:
                _tell(owner, variable)
        elif counters_now[id(owner)] == counters:
            by_owner.setdefault(id(owner), []).append((variable, entry))
    for pairs in by_owner.values():
        variables, entries = zip(*pairs, strict=True)
        values = _copies([entry.put for entry in entries])
        put_in(variables, values, entries[0].owner(), entries[0].copies)


def adopt(
    variables: Sequence[Any],
    raw: Sequence[Any],
    owner: Owner,
    copies: Copies = device_copies,
) -> None:
    """Learn that variables hold an average already, as a file says.

    Args:
        variables: Keras variables.
        raw: Their raw values.
        owner: See `Owner`.
        copies: See `put_in`.
    """
    for variable, value in zip(variables, raw, strict=True):
        _swapped[id(variable)] = Swapped(
            _tied(variable, _swapped), value, copies
        )
    _remember(variables, _reference(owner))


def measured(variables: Sequence[Any]) -> None:
    """Take what variables hold now for what was put in.

    Args:
        variables: Keras variables, measured for the average that is in the
            model. Those without an average stay as they are.
    """
    for variable in variables:
        if id(variable) in _swapped:
            _remember([variable], _swapped[id(variable)].owner)


def settle(variables: Sequence[Any]) -> None:
    """Let go of the entries of variables that somebody wrote to.

    Args:
        variables: Keras variables.
    """
    if not _swapped:
        return
    known = [(v, _swapped[id(v)]) for v in variables if id(v) in _swapped]
    put = [
        (v, entry)
        for v, entry in known
        if entry.put is not None and has_value(v)
    ]
    same = same_values([v.value for v, _ in put], [e.put for _, e in put])
    written = [one for one, kept in zip(put, same, strict=True) if not kept]
    for variable, entry in written:
        del _swapped[id(variable)]
        reference, writes = _tied(variable, _writes), _writes_to(variable)
        _writes[id(variable)] = reference, writes + 1
        if variable.trainable:
            _tell(entry.owner(), variable)
    # Where weights were trained or loaded, their statistics were, too.
    if not any(variable.trainable for variable, _ in written):
        _leave_alone([variable for variable, _ in written])


def forget(owner: Owner) -> None:
    """Let go of all entries of an owner: what is in the model stays."""
    for key in [k for k, known in _swapped.items() if known.owner() is owner]:
        del _swapped[key]


def is_any_in(variables: Sequence[Any]) -> bool:
    """Whether an average is in any of the variables."""
    return bool(_swapped) and any(id(v) in _swapped for v in variables)


def owners(variables: Sequence[Any]) -> list[Owner]:
    """Those whose averages are in variables, each once."""
    known = (_swapped.get(id(v)) for v in variables)
    found = [entry.owner() for entry in known if entry]
    return list({id(o): o for o in found if o is not None}.values())


def raw_values(variables: Sequence[Any], owner: Owner = None) -> dict[int, Any]:
    """The raw values of variables that hold an average, by their index.

    Args:
        variables: Keras variables.
        owner: Only those behind this owner's average. Defaults to `None`, all.

    Returns:
        Dict from integers to arrays.
    """
    known = [_swapped.get(id(v)) for v in variables]
    return {
        i: entry.raw
        for i, entry in enumerate(known)
        if entry and (owner is None or entry.owner() is owner)
    }


def _counters(entries: Iterable[Swapped]) -> dict[int, Any]:
    """Of the owners of entries, by the owner's id."""
    found = {id(o): o for o in (entry.owner() for entry in entries)}
    return {key: o and o.counters for key, o in found.items()}


def _assign(pairs: Sequence[tuple[Any, Any]]) -> None:
    """Assign values. If it is interrupted, raw values are right."""
    for variable, _ in pairs:
        _swapped[id(variable)].put = None
    assign([v for v, _ in pairs], [value for _, value in pairs])


def _copies(values: Sequence[Any]) -> list[Any]:
    # What the model holds JAX donates, and these are kept, here or by a
    # context around.
    return [keras.ops.copy(value) for value in values]


def _remember(variables: Sequence[Any], owner: Callable[[], Owner]) -> None:
    for variable in variables:
        known = _swapped[id(variable)]
        (known.put,) = known.copies([variable])
        known.owner = owner


def _writes_to(variable: Any) -> int:
    return _writes.get(id(variable), (None, 0))[1]


def _tied(variable: Any, entries: dict[int, Any]) -> Any:
    """Weak reference, with whose end the entry of the variable ends."""
    key = id(variable)
    return weakref.ref(variable, lambda _: entries.pop(key, None))


def _reference(owner: Owner) -> Callable[[], Owner]:
    # Weak, because the variables are reached from the owner.
    return _nobody if owner is None else weakref.ref(owner)


def _tell(owner: Owner, variable: Any) -> None:
    if owner is not None:
        owner.replaced.append(variable.path)


def _leave_alone(state: Sequence[Any]) -> None:
    for variable in state:
        _inference_state[id(variable)] = _tied(variable, _inference_state)
    if state:
        more = f" and {len(state) - 1} more" if len(state) > 1 else ""
        warn(
            f"The weight '{state[0].path}'{more}, which no gradient trains, "
            "changed while an average was in the model. It keeps its new "
            "value, and its average is no longer put in the model. If that "
            "value depends on the one before, leave the weight out of the "
            "average with `include`.",
        )
