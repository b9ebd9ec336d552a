"""What an averaging callback refuses, and what it warns of."""

import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from keras_wavg.backend import without_parameters
from keras_wavg.callbacks.callback_list import calling_list
from keras_wavg.running import RunningAverage
from keras_wavg.warning import warn


def refuse_no_model(callback: Any) -> NoReturn:
    """Refuse to do anything before there is a model."""
    raise ValueError(
        f"`{_class(callback)}` needs a model. Received: none. Pass the "
        "callback to `fit`, or call `set_model(model)`."
    )


def refuse_lost_parameters(model: Any) -> None:
    """Refuse a model that an optimizer trains in other tensors than its own.

    Raises:
        ValueError: If `fully_shard` of torch replaced its parameters.
    """
    paths = without_parameters(model) if model.built else []
    if paths:
        raise ValueError(
            "The parameters that an optimizer trains must be the weights of "
            "the model. Received: a model after `fully_shard`, which made new "
            f"parameters of {len(paths)} weights, '{paths[0]}' the first, "
            "while Keras goes on with the old tensors. Use "
            "`DistributedDataParallel`, or let the variables follow the "
            "parameters, as the README shows."
        )


def refuse_no_average(callback: Any) -> NoReturn:
    """Refuse to show an average before the first update."""
    raise ValueError(
        f"`{_class(callback)}` has no average before the first update. "
        "Received: no update of this model so far, with "
        f"{_timing(callback)}. Train longer, or take the weights of the model "
        "itself."
    )


def refuse_the_name(name: str) -> NoReturn:
    """Refuse a second average of one name."""
    raise ValueError(
        "The averages of one model must have different names, by which files "
        f"tell them apart. Received: several with name='{name}'. Pass `name=` "
        "to each."
    )


def refuse_rivals(callback: Any, averages: Sequence[Any]) -> None:
    """Refuse a second average in the model, or of the same name.

    Args:
        callback: One that begins to work.
        averages: All averaging callbacks of its list, itself among them.
    """
    swapping = [average for average in averages if average.swap]
    if len(swapping) > 1:
        raise ValueError(
            "At most one average can be swapped into the model. Received: "
            f"{len(swapping)} callbacks with `swap=True`: "
            f"{', '.join(map(_class, swapping))}. Pass `swap=False` to all but "
            "one."
        )
    if [average.name for average in averages].count(callback.name) > 1:
        refuse_the_name(callback.name)


def require_thread(callback: Any, thread: int) -> None:
    """Refuse hooks from another thread than the one that began."""
    if threading.get_ident() != thread:
        name = _class(callback)
        if calling_list(callback) is not callback._list:
            raise RuntimeError(
                f"`{name}` must be in one `fit` at a time. Received: hooks of "
                "several threads. Pass a copy to each, by `copy.deepcopy`."
            )
        raise RuntimeError(
            f"`{name}` must be passed in a list: Keras calls a bare callback "
            "from other threads, while the next step is already changing the "
            "weights. Received: callbacks=<a bare callback>. Write "
            f"`callbacks=[{name}(...)]`."
        )


def warn_of_no_average(callback: Any, running: RunningAverage) -> None:
    """Warn that a training was too short."""
    warn(
        f"`{_class(callback)}` made no average: `fit` ended after "
        f"{running.epochs} epochs and {running.clock.now} optimizer steps. "
        f"Received: {_timing(callback)}. Lower them or train longer. The model "
        "keeps its raw weights.",
    )


def warn_of_elements(callback: Any, paths: Sequence[str]) -> None:
    """Warn that some elements are not averaged any more."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    warn(
        f"The weight '{paths[0]}'{more} has elements that are NaN or infinite. "
        f"The average of these elements in `{_class(callback)}` is of the "
        "steps at which they were finite.",
    )


def warn_of_ema_of_keras(callback: Any) -> None:
    """Warn of a second average, that the optimizer of Keras keeps."""
    optimizer = getattr(callback.model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if getattr(inner, "use_ema", False):
        warn(
            f"The optimizer must not have `use_ema=True` beside "
            f"`{_class(callback)}`: it overwrites the weights with an average "
            "of its own when `fit` ends. Received: "
            f"optimizer={type(inner).__name__}(use_ema=True).",
        )


def _class(callback: Any) -> str:
    return type(callback).__name__


def _timing(callback: Any) -> str:
    names = ["start", "start_epoch", "every", "every_steps", "cycle_steps"]
    times = {name: getattr(callback, name, None) for name in names}
    return ", ".join(f"{k}={v}" for k, v in times.items() if v is not None)
