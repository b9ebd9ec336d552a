"""What an averaging callback refuses, and what it warns of."""

import threading
import warnings
from typing import Any, NoReturn

from keras_wavg.callbacks import fellows
from keras_wavg.running import RunningAverage


def refuse_no_model(callback: Any) -> NoReturn:
    """Refuse to do anything before there is a model."""
    raise ValueError(
        f"`{_class(callback)}` needs a model. Received: none. Pass the "
        "callback to `fit`, or call `set_model(model)`."
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


def refuse_rivals(callback: Any) -> None:
    """Refuse a second average in the model, or of the same name.

    Args:
        callback: One that begins to work, in a list of callbacks.
    """
    averages = fellows.join(callback, fellows.AVERAGES)
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
        raise RuntimeError(
            f"`{name}` must be passed in a list: Keras calls a bare callback "
            "from other threads, while the next step is already changing the "
            "weights. Received: callbacks=<a bare callback>. Write "
            f"`callbacks=[{name}(...)]`."
        )


def warn_of_no_average(callback: Any, running: RunningAverage) -> None:
    """Warn that a training was too short."""
    warnings.warn(
        f"`{_class(callback)}` made no average: `fit` ended after "
        f"{running.epochs} epochs and {running.clock.now} optimizer steps. "
        f"Received: {_timing(callback)}. Lower them or train longer. The model "
        "keeps its raw weights.",
        stacklevel=3,
    )


def warn_of_skips(callback: Any) -> None:
    """Warn that steps were left out."""
    warnings.warn(
        f"`{_class(callback)}` left out {callback.skipped} updates: the "
        "weights had become NaN or infinite. The average is of the steps "
        "before.",
        stacklevel=3,
    )


def _class(callback: Any) -> str:
    return type(callback).__name__


def _timing(callback: Any) -> str:
    names = ["start", "start_epoch", "every", "every_steps", "cycle_steps"]
    times = {name: getattr(callback, name, None) for name in names}
    return ", ".join(f"{k}={v}" for k, v in times.items() if v is not None)
