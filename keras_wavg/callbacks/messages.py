"""Errors and warnings of the averaging callbacks."""

import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from keras_wavg.backend import name_of_backend, paths_without_parameters
from keras_wavg.batchnorm import modules_of_torch
from keras_wavg.callbacks.callback_list import calling_list
from keras_wavg.model_average import ModelAverage
from keras_wavg.warning import warn


def require_model(callback: Any, current: ModelAverage | None) -> ModelAverage:
    """Return the average of the current model.

    Raises:
        ValueError: If no model was set.
    """
    if current is None:
        raise ValueError(
            f"`{_class(callback)}` needs a model. Received: none. Pass the "
            "callback to `fit`, or call `set_model(model)`."
        )
    return current


def refuse_lost_parameters(model: Any) -> None:
    """Refuse a model whose weights are not what the optimizer trains.

    Raises:
        ValueError: If `fully_shard` of torch replaced its parameters.
    """
    paths = paths_without_parameters(model) if model.built else []
    if paths:
        raise ValueError(
            "The parameters that an optimizer trains must be the weights of "
            "the model. Received: a model after `fully_shard`, which made new "
            f"parameters for {len(paths)} weights (the first is '{paths[0]}') "
            "while Keras still uses the old tensors. Use "
            "`DistributedDataParallel`, or assign the new parameters to the "
            "variables, as the guide shows."
        )


def refuse_no_average(callback: Any) -> NoReturn:
    """Refuse to return an average before the first update."""
    raise ValueError(
        f"`{_class(callback)}` has no average before the first update. "
        "Received: no update of this model so far, with "
        f"{_timing(callback)}. Train longer, or use the weights of the model."
    )


def refuse_the_name(name: str) -> NoReturn:
    """Refuse a second average with the same name."""
    raise ValueError(
        "The averages of a model must have different names, which identify "
        f"them in saved files. Received: several with name='{name}'. Pass "
        "`name=` to each."
    )


def refuse_rivals(callback: Any, averages: Sequence[Any]) -> None:
    """Refuse a second average that is swapped in or has the same name.

    Args:
        callback: The callback whose hook is called.
        averages: All averaging callbacks of its list, including itself.
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
    """Refuse hooks that are called from another thread than the first."""
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


def warn_of_no_average(callback: Any, average: ModelAverage) -> None:
    """Warn that training was too short for an update."""
    warn(
        f"`{_class(callback)}` made no average: `fit` ended after "
        f"{average.epochs} epochs and {average.clock.now} optimizer steps. "
        f"Received: {_timing(callback)}. Lower them or train longer. The model "
        "keeps its raw weights.",
    )


def warn_of_elements(callback: Any, paths: Sequence[str]) -> None:
    """Warn that some elements are no longer averaged."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    warn(
        f"The weight '{paths[0]}'{more} has elements that are NaN or infinite. "
        f"In `{_class(callback)}` the average of these elements includes only "
        "the steps at which they were finite.",
    )


def warn_of_ema_of_keras(callback: Any) -> None:
    """Warn of a second average, kept by the optimizer of Keras."""
    optimizer = getattr(callback.model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if getattr(inner, "use_ema", False):
        warn(
            f"The optimizer must not have `use_ema=True` beside "
            f"`{_class(callback)}`: the optimizer overwrites the weights with "
            "its own average when `fit` ends. Received: "
            f"optimizer={type(inner).__name__}(use_ema=True).",
        )


def warn_of_buffers(callback: Any) -> None:
    """Warn of moving statistics that Keras does not know as weights."""
    modules = modules_of_torch(callback.model)
    if modules:
        warn(
            f"`{_class(callback)}` averages only weights of the model. "
            f"Received: {len(modules)} normalizations of torch (the first is "
            f"'{modules[0].path}'), whose moving statistics are buffers and "
            "belong to the raw weights. Call `update_bn(model, data)` while "
            "the average is in the model.",
        )


def warn_of_constant_target(callback: Any) -> None:
    """Warn of a target that a compiled `train_step` of JAX may not update."""
    model, target = callback.model, callback.target
    if target is None or name_of_backend() != "jax" or model.run_eagerly:
        return
    known = {id(variable) for variable in model.variables}
    if any(id(variable) not in known for variable in target.variables):
        warn(
            "On JAX, `target` must be an attribute of the model if its "
            "`train_step` calls it: otherwise a compiled step keeps using the "
            f"first weights. Received: target={target!r}, of which the model "
            "does not have all weights. Write `model.target = target`.",
        )


def refuse_to_copy_a_target(callback: Any) -> None:
    """Refuse to copy a callback whose target belongs to a model.

    Raises:
        ValueError: If the callback has a target.
    """
    if callback.target is not None:
        raise ValueError(
            f"`{_class(callback)}` with a `target` cannot be copied: the "
            "target would no longer be part of the model. Received: target="
            f"{callback.target!r}. Make a new callback for each model."
        )


def _class(callback: Any) -> str:
    return type(callback).__name__


def _timing(callback: Any) -> str:
    names = [
        "start_step",
        "start_epoch",
        "every_epochs",
        "every_steps",
        "cycle_steps",
    ]
    times = {name: getattr(callback, name, None) for name in names}
    return ", ".join(f"{k}={v}" for k, v in times.items() if v is not None)
