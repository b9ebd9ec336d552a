"""Checks of arguments, in the words of Keras."""

import math
import numbers
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

Include = str | Callable[[str], bool] | None
"""Which variables: a regular expression, a predicate on paths, or all."""

_HIGHER_IS_BETTER = ("acc", "auc", "f1", "fmeasure", "precision", "recall")


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or of NumPy."""
    return isinstance(value, numbers.Real)


def number(name: str, value: Any, *, at_least: float) -> float:
    """The argument `name` as a finite float."""
    if not is_number(value) or not at_least <= value < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number >= {at_least}. Received: "
            f"{name}={value!r}"
        )
    return float(value)


def positive(name: str, value: Any) -> float:
    """The argument `name` as a finite float above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(
            f"`{name}` must be a positive number. Received: {name}={value!r}"
        )
    return float(value)


def decay(decay: Any) -> float:
    """The argument `decay` as a float in [0, 1)."""
    if not is_number(decay) or not 0 <= decay < 1:
        raise ValueError(
            f"`decay` must be in the range [0, 1). Received: decay={decay!r}"
        )
    return float(decay)


def share(name: str, value: Any) -> float:
    """The argument `name` as a float in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be in the range (0, 1]. Received: {name}={value!r}"
        )
    return float(value)


def integer(name: str, value: Any, *, at_least: int) -> int:
    """The argument `name` as an integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if number < at_least:
        raise ValueError(
            f"`{name}` must be an integer >= {at_least}. Received: "
            f"{name}={value!r}"
        )
    return number


def even(name: str, value: Any) -> int:
    """The argument `name` as an even integer of at least 2."""
    number = integer(name, value, at_least=2)
    if number % 2:
        raise ValueError(
            f"`{name}` must be an even integer >= 2. Received: {name}={value!r}"
        )
    return number


def integer_or_none(name: str, value: Any, *, at_least: int) -> int | None:
    """The argument `name` as an integer, or `None`."""
    return None if value is None else integer(name, value, at_least=at_least)


def include(include: Include) -> Include:
    """The argument `include`."""
    try:
        if isinstance(include, str):
            re.compile(include)
            return include
    except re.error as error:
        raise ValueError(
            f"`include` must be a valid regular expression: {error}. "
            f"Received: include={include!r}"
        ) from error
    if include is not None and not callable(include):
        raise ValueError(
            "`include` must be a regular expression, a function from a "
            f"weight's path to a boolean, or `None`. Received: {include!r}"
        )
    return include


def predicate(include: Include) -> Callable[[str], Any]:
    """What the argument `include` says of a path."""
    if include is None:
        return lambda _: True
    return re.compile(include).search if isinstance(include, str) else include


def name(name: Any, default: str) -> str:
    """The argument `name`."""
    if name is None:
        return default
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "`name` must be a string of letters, digits, `_`, `-` and `.`. "
            f"Received: name={name!r}"
        )
    return name


def score(value: Any) -> float:
    """What a function, the argument `score`, returned."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`score` must return a number. Received: {value!r}"
        ) from error


def repeatable(name: str, data: Any) -> Any:
    """The argument `name`, data that is gone through several times."""
    if isinstance(data, Iterator):
        raise ValueError(  # noqa: TRY004
            f"`{name}` must be data that can be gone through again and again. "
            f"Received: {name}={data!r}, an iterator. Pass arrays, a "
            "`keras.utils.PyDataset`, a `tf.data.Dataset` or a "
            "`torch.utils.data.DataLoader`."
        )
    return data


def device(device: Any) -> str | None:
    """The argument `device`."""
    if device not in (None, "cpu"):
        raise ValueError(
            "`device` must be `None`, for the device of each weight, or "
            f"'cpu'. Received: device={device!r}"
        )
    return device


def is_higher_better(metric: str, mode: Any) -> bool:
    """What the argument `mode` says of a metric."""
    if mode not in {"auto", "min", "max"}:
        raise ValueError(
            f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}"
        )
    if mode == "auto":
        return any(part in metric for part in _HIGHER_IS_BETTER)
    return mode == "max"
