"""One-line descriptions of callbacks, for `repr`."""

import inspect
import os
from typing import Any

_SHOWN = (bool, int, float, str, os.PathLike)


def settings(callback: Any) -> str:
    """Write a callback as the call that makes it, without default values.

    Args:
        callback: An object that keeps each argument in an attribute of the same
            name.

    Returns:
        String, such as `EMA(decay=0.99)`. Data and functions are replaced by
        the names of their types.
    """
    changed = [
        f"{name}={_short(value)}"
        for name, parameter in _parameters(type(callback)).items()
        if (value := getattr(callback, name, None)) is not None
        and not _equals(value, parameter.default)
    ]
    return f"{type(callback).__name__}({', '.join(changed)})"


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Parameters of a class and, by `**options`, of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for home in kind.__mro__:
        if "__init__" in vars(home):
            own = inspect.signature(home).parameters
            found |= {k: p for k, p in own.items() if k not in found}
            if all(p.kind is not p.VAR_KEYWORD for p in own.values()):
                break
    return found


def _equals(value: Any, default: Any) -> bool:
    return _is_shown(value) and value == default


def _short(value: Any) -> str:
    return repr(value) if _is_shown(value) else type(value).__name__


def _is_shown(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, _SHOWN) for part in parts)
