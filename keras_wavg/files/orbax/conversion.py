"""Converts Orbax checkpoints to files of Keras, using the model's config."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from keras_wavg.files.checkpoint import SUFFIXES, keras_archive
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint, OrbaxOpener
from keras_wavg.files.orbax.steps import is_orbax

Weights = Sequence[float] | None


def is_converted(plan: FilePlan, output: Path) -> bool:
    """Return whether Orbax checkpoints are averaged to a file of Keras."""
    is_file = output.name.endswith(SUFFIXES)
    return isinstance(plan.last, OrbaxCheckpoint) and is_file


def separate_config(
    paths: Sequence[Path], weights: Weights
) -> tuple[Sequence[Path], Weights, Path | None]:
    """Separate the `.keras` file that only provides the model's config.

    With Orbax checkpoints, it is the last `.keras` file with weight 0.

    Returns:
        The other paths, their weights, and the path of the `.keras` file or
        `None`.
    """
    if weights is None or len(weights) != len(paths):
        return paths, weights, None
    pairs = list(zip(paths, weights, strict=True))
    configs = [p for p, w in pairs if p.suffix == ".keras" and not w]
    if not configs or not any(map(is_orbax, paths)):
        return paths, weights, None
    averaged = [(p, w) for p, w in pairs if p not in configs]
    return [p for p, _ in averaged], [w for _, w in averaged], configs[-1]


def model_config(plan: FilePlan) -> str | bytes:
    """The config of the model as JSON.

    Raises:
        ValueError: If no checkpoint has one.
    """
    if "optimizer" in plan.copied.values():
        raise ValueError(
            "The state of an optimizer can be copied from an Orbax directory "
            "only to an Orbax directory. Received: optimizer='last' and a file "
            "as the output. Write a directory, or pass `optimizer='drop'`."
        )
    if plan.config_of is not None:
        archived: bytes = keras_archive().read_config(plan.config_of)
        return archived
    config = plan.last.read_config()
    if config is None:
        raise ValueError(
            "To write Orbax weights to a file, the config of the model is "
            "required. Received: an Orbax directory without a config, "
            f"{plan.last.name}. Write a directory, or add a `.keras` file of "
            "the model with weight 0."
        )
    return config


def write_keras_file(step: Path, config: str | bytes, output: Path) -> Path:
    """Write the weights of an Orbax checkpoint to a file of Keras.

    Keras is imported to build the model.

    Args:
        step: `pathlib.Path` of the directory of the step.
        config: String or bytes, the config of the model as JSON.
        output: `pathlib.Path` of the file. Instead of a `.weights.json` with
            shards, one `.weights.h5` is written.

    Returns:
        `pathlib.Path` of the written file.
    """
    suffix = ".keras" if output.suffix == ".keras" else ".weights.h5"
    file = output.with_name(f"converted{suffix}")
    checkpoint = OrbaxOpener().open(step)
    arrays = {path: checkpoint.read(path) for path in checkpoint.weights}
    # Nothing else in this package needs Keras.
    model_from_config = importlib.import_module("keras_wavg.model_from_config")
    model_from_config.save(config, arrays, file)
    return file
