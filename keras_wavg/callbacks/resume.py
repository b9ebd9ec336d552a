"""Resuming training from a file."""

import os
from collections.abc import Sequence
from typing import Any

from keras_wavg.callbacks.weight_averaging import WeightAveraging


def resume(
    model: Any,
    filepath: str | os.PathLike[str],
    averages: Sequence[WeightAveraging],
) -> None:
    """Load weights, optimizer and averages, to resume training.

    The next `fit` continues as if training had not been interrupted.

    Args:
        model: A built and compiled Keras model with the architecture of the
            saved one.
        filepath: String or `pathlib.Path` of a file or directory that
            `model.save`, `model.save_weights`, `ModelCheckpoint` or
            `OrbaxCheckpoint` wrote while the model was trained with averages.
        averages: List of averaging callbacks, such as `EMA`, with the names
            that they had when the model was saved. Pass the same list to `fit`.

    Example:

    ```python
    ema = EMA(0.999)
    resume(model, "epoch_7.keras", [ema])
    model.fit(x, y, initial_epoch=7, epochs=20, callbacks=[ema])
    ```

    Raises:
        ValueError: If the model is not built or not compiled, or if the file
            was saved from another model or with another kind of average of the
            same name. The model is not changed then.
    """
    optimizer = getattr(model, "optimizer", None)
    if not model.built or optimizer is None:
        raise ValueError(
            "`resume` needs a built and compiled model. Received: "
            f"model={model!r}, built={model.built}, optimizer={optimizer!r}. "
            "Add an `Input` layer or call the model on data, and call "
            "`compile`."
        )
    for average in averages:
        average.set_model(model)
    # A new optimizer has no variables to load into.
    optimizer.build(model.trainable_variables)
    model.load_weights(filepath)
