"""Validates arguments, with errors worded as in Keras."""

import math
import numbers
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

Include = str | Callable[[str], bool] | None
"""Variables to include: a regular expression, a function of paths, or all."""

# The metrics of Keras, by the direction that Keras gives them.
_HIGHER_IS_BETTER = frozenset(
    """
    acc accuracy auc binary_accuracy binary_io_u categorical_accuracy
    concordance_correlation cosine_similarity f1_score fbeta_score io_u
    mean_io_u one_hot_io_u one_hot_mean_io_u pearson_correlation precision
    precision_at_recall r2_score recall recall_at_precision
    sensitivity_at_specificity sparse_categorical_accuracy
    sparse_top_k_categorical_accuracy specificity_at_sensitivity
    top_k_categorical_accuracy
    """.replace("_", "").split()
)
_LOWER_IS_BETTER = frozenset(
    """
    bce binary_crossentropy categorical_crossentropy categorical_hinge hinge
    kl_divergence log_cosh_error logcosh loss mae mape mean_absolute_error
    mean_absolute_percentage_error mean_squared_error
    mean_squared_logarithmic_error mse msle poisson root_mean_squared_error
    sparse_categorical_crossentropy squared_hinge
    """.replace("_", "").split()
)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy."""
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


def fraction(name: str, value: Any) -> float:
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
    """The argument `include` as a function of a path."""
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
    """The result of the function `score` as a float."""
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`score` must return a number. Received: {value!r}"
        ) from error


def repeatable(name: str, data: Any) -> Any:
    """The argument `name`, data that is iterated several times."""
    if isinstance(data, Iterator):
        raise ValueError(  # noqa: TRY004
            f"`{name}` must be data that can be iterated several times. "
            f"Received: {name}={data!r}, an iterator. Pass arrays, a "
            "`keras.utils.PyDataset`, a `tf.data.Dataset` or a "
            "`torch.utils.data.DataLoader`."
        )
    return data


def batch_norm_steps(data: Any, steps: Any) -> int | None:
    """The argument `batch_norm_steps`, beside `batch_norm_data`."""
    if steps is not None and data is None:
        raise ValueError(
            "`batch_norm_steps` requires `batch_norm_data`. Received: "
            f"batch_norm_steps={steps!r}, batch_norm_data=None"
        )
    repeatable("batch_norm_data", data)
    return integer_or_none("batch_norm_steps", steps, at_least=1)


def device(device: Any) -> str | None:
    """The argument `device`."""
    if device not in (None, "cpu"):
        raise ValueError(
            "`device` must be `None`, for the device of each weight, or "
            f"'cpu'. Received: device={device!r}"
        )
    return device


def is_higher_better(monitor: str, mode: Any) -> bool:
    """Whether a higher value of a metric is better, by the argument `mode`.

    For `mode="auto"` this decides as Keras does, but from the name alone.

    Args:
        monitor: String, the name of the metric, with or without `val_`.
        mode: `"auto"`, `"min"` or `"max"`.

    Raises:
        ValueError: If `mode` is not one of these, or if it is `"auto"` and the
            metric is not one of Keras.
    """
    if mode not in {"auto", "min", "max"}:
        raise ValueError(
            f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}"
        )
    if mode != "auto":
        return mode == "max"
    # Keras numbers instances of a metric, `auc_1`, and accepts `AUC`.
    name = re.sub(r"_\d+$", "", monitor.removeprefix("val_"))
    name = name.lower().replace("_", "")
    if name not in _HIGHER_IS_BETTER | _LOWER_IS_BETTER:
        raise ValueError(
            "With `mode='auto'`, `monitor` must be a loss or a metric of "
            f"Keras. Received: monitor={monitor!r}. Pass `mode='max'` if a "
            "higher value is better, or `mode='min'` if a lower one is."
        )
    return name in _HIGHER_IS_BETTER
