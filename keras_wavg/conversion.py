"""Weights by their paths, saved in the formats of Keras.

Only the model itself knows where its weights are in a file, so it is built.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras


def save(config: str | bytes, weights: Mapping[str, Any], output: Path) -> None:
    """Save weights as the model would that they belong to.

    Args:
        config: The config of the model, as JSON.
        weights: Dict from `variable.path` to arrays. Seeds of random numbers
            may be missing: they are those of a new model then.
        output: `pathlib.Path`, a `.keras` or a `.weights.h5`.

    Raises:
        ValueError: If the model cannot be built, or has other variables.
    """
    model = _built(config)
    # A Sequential that `fit` has built has its name in these paths; one that is
    # built from its config has not.
    prefix = f"{model.name}/"
    given = {path.removeprefix(prefix): weights[path] for path in weights}
    variables = {
        variable.path.removeprefix(prefix): variable
        for variable in model.weights
        if variable.name != "seed_generator_state"
    }
    if given.keys() != variables.keys():
        raise ValueError(
            "The config of a checkpoint must be of the model whose weights it "
            "has. Received: a config with other variables, such as "
            f"{sorted(given.keys() ^ variables.keys())[:5]}"
        )
    for path, variable in variables.items():
        variable.assign(given[path])
    if output.suffix == ".keras":
        model.save(output)
    else:
        model.save_weights(output)


def _built(config: str | bytes) -> Any:
    try:
        return keras.saving.deserialize_keras_object(json.loads(config))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            "The config of a checkpoint must be one that Keras can build. "
            f"Received: a config of which it says: {error}"
        ) from error
