"""Training that goes on from a file."""

import os
from collections.abc import Sequence
from typing import Any

from keras_wavg.callbacks.averaging import WeightAveraging


def resume(
    model: Any,
    filepath: str | os.PathLike[str],
    averages: Sequence[WeightAveraging],
) -> None:
    """Load weights, optimizer and averages, to go on with the training.

    The next `fit` continues as if the training had not been interrupted.

    Args:
        model: A built and compiled Keras model, like the one that was saved.
        filepath: String or `pathlib.Path`. What `model.save`,
            `model.save_weights`, `ModelCheckpoint` or `OrbaxCheckpoint` wrote
            of a model in whose `fit` there were averages.
        averages: List of averaging callbacks, such as `EMA`, with the names
            that they had then. Pass the same ones to `fit`.

    Example:

    ```python
    ema = EMA(0.999)
    resume(model, "epoch_7.keras", [ema])
    model.fit(x, y, initial_epoch=7, epochs=20, callbacks=[ema])
    ```

    Raises:
        ValueError: If the model is not built or not compiled, or if the file
            is of another model or has another average of that name. Nothing
            is changed then.
    """
    optimizer = getattr(model, "optimizer", None)
    if not model.built or optimizer is None:
        raise ValueError(
            "`resume` needs a model that is built and compiled. Received: "
            f"model={model!r}, built={model.built}, optimizer={optimizer!r}. "
            "Give it an `Input`, or call it on data, and call `compile`."
        )
    for average in averages:
        average.set_model(model)
    # A new optimizer has no variables yet that could be loaded.
    optimizer.build(model.trainable_variables)
    model.load_weights(filepath)
