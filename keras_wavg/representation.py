"""One-line descriptions of callbacks and schedules, for `repr`."""

import inspect
import os
from typing import Any

_SCALARS = (bool, int, float, str, os.PathLike)


def settings(described: Any, shown: tuple[type, ...] = ()) -> str:
    """Write an object as the call that makes it, without default values.

    Args:
        described: An object that keeps each argument in an attribute of the
            same name.
        shown: Tuple of types, besides those of scalars, whose values are shown
            by their own `repr`. Defaults to `()`.

    Returns:
        String, such as `EMA(decay=0.99)`. Other values, such as data and
        functions, are replaced by the names of their types.
    """
    types = (*_SCALARS, *shown)
    changed = [
        f"{name}={_short(value, types)}"
        for name, parameter in _parameters(type(described)).items()
        if (value := getattr(described, name, None)) is not None
        and not (_is_shown(value, types) and value == parameter.default)
    ]
    return f"{type(described).__name__}({', '.join(changed)})"


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


def _short(value: Any, types: tuple[type, ...]) -> str:
    return repr(value) if _is_shown(value, types) else type(value).__name__


def _is_shown(value: Any, types: tuple[type, ...]) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, types) for part in parts)
