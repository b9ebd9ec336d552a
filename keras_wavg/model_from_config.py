"""Builds a model from its config to save weights in the formats of Keras.

Only the model knows where its weights are stored in a file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras


def save(config: str | bytes, weights: Mapping[str, Any], output: Path) -> None:
    """Save weights as their model would save them.

    Args:
        config: String or bytes, the config of the model as JSON.
        weights: Dict from `variable.path` to arrays. Seeds may be missing. Then
            those of a new model are saved.
        output: `pathlib.Path` of a `.keras` or a `.weights.h5` file.

    Raises:
        ValueError: If the model cannot be built, or has other variables.
    """
    model = _build(config)
    # The paths start with the name of a Sequential model if `fit` built it, but
    # not if it was built from its config.
    prefix = f"{model.name}/"
    arrays = {path.removeprefix(prefix): weights[path] for path in weights}
    variables = {
        variable.path.removeprefix(prefix): variable
        for variable in model.weights
        if variable.name != "seed_generator_state"
    }
    if arrays.keys() != variables.keys():
        raise ValueError(
            "The config of a checkpoint must be that of the model with its "
            "weights. Received: a config with other variables, such as "
            f"{sorted(arrays.keys() ^ variables.keys())[:5]}"
        )
    for path, variable in variables.items():
        variable.assign(arrays[path])
    if output.suffix == ".keras":
        model.save(output)
    else:
        model.save_weights(output)


def _build(config: str | bytes) -> keras.Model:
    try:
        return keras.saving.deserialize_keras_object(json.loads(config))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            "Keras must be able to build a model from the config of a "
            f"checkpoint. Received: a config with this error: {error}"
        ) from error
