"""Callbacks of one list that need to know of each other."""

from typing import Any

AVERAGES, EVALUATORS = "averages", "evaluators"


def join(callback: Any, kind: str) -> list[Any]:
    """Enter a callback that begins to work.

    Args:
        callback: A Keras callback.
        kind: String, of what kind it is.

    Returns:
        List of those of its kind, itself the last.
    """
    # Keras gives all callbacks of a list the same dict.
    same = (callback.params or {}).setdefault(kind, [])
    same.append(callback)
    return same


def leave(callback: Any, kind: str) -> None:
    """Let its list be used again once a callback has ended its work."""
    same = (callback.params or {}).get(kind, [])
    same[:] = [other for other in same if other is not callback]
