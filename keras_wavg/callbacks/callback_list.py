"""The place of a callback in the list of callbacks that calls its hooks."""

import inspect
from collections.abc import Callable
from typing import Any

import keras


def calling_list(callback: Any) -> keras.callbacks.CallbackList | None:
    """The `CallbackList` that calls a hook of a callback right now.

    Args:
        callback: A Keras callback, whose hook is running.

    Returns:
        The `CallbackList`, or `None` if somebody else calls the hook: a loop of
        one's own, or a callback that forwards its hooks.
    """
    # Keras tells a callback nothing of its list. Only the call stack knows.
    frame = inspect.currentframe()
    while frame is not None:
        # Of hooks alone: to look at the locals of `fit` keeps them, and the
        # weights among them, for as long as it runs.
        if frame.f_code.co_name.lstrip("_").startswith("on_"):
            caller = frame.f_locals.get("self")
            if isinstance(caller, keras.callbacks.CallbackList):
                is_in = any(other is callback for other in caller.callbacks)
                return caller if is_in else None
        frame = frame.f_back
    return None


def move_forward(
    callback: Any,
    callbacks: list[Any],
    *,
    behind: Callable[[Any], bool] = lambda _: False,
) -> None:
    """Move a callback to the head of a list, while Keras goes through it.

    A callback never moves backward, so Keras, which counts, skips nobody and
    calls nobody twice.

    Args:
        callback: A callback of the list, whose turn it is.
        callbacks: `CallbackList.callbacks`.
        behind: Function that tells of another callback at the head whether this
            one comes after it.
    """
    own = next(i for i, other in enumerate(callbacks) if other is callback)
    place = 0
    while place < own and behind(callbacks[place]):
        place += 1
    callbacks.insert(place, callbacks.pop(own))
