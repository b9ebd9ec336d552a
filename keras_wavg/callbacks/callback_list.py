"""The place of a callback in the list of callbacks that calls its hooks."""

import inspect
from collections.abc import Callable
from typing import Any

import keras


def calling_list(callback: Any) -> keras.callbacks.CallbackList | None:
    """Return the `CallbackList` that is calling a hook of a callback.

    Args:
        callback: A Keras callback whose hook is running.

    Returns:
        The `CallbackList`, or `None` if the hook is called by a custom training
        loop or by a callback that forwards its hooks.
    """
    # Keras gives a callback no reference to its list. The call stack has one.
    frame = inspect.currentframe()
    while frame is not None:
        # Only frames of hooks: reading the locals of `fit` would keep them, and
        # so a copy of the weights, alive until it returns.
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
    """Move a callback to the head of a list while Keras iterates over it.

    Callbacks only move forward, so Keras, which iterates by index, skips none
    and calls none twice.

    Args:
        callback: The callback of the list whose hook is running.
        callbacks: `CallbackList.callbacks`.
        behind: Function from a callback at the head of the list to a boolean,
            whether `callback` must come after it.
    """
    own = next(i for i, other in enumerate(callbacks) if other is callback)
    place = 0
    while place < own and behind(callbacks[place]):
        place += 1
    callbacks.insert(place, callbacks.pop(own))
