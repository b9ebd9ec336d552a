"""Folders of Orbax as files, by the config of the model."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from keras_wavg.files.checkpoint import SUFFIXES, archive_room
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.reading import OrbaxCheckpoint, OrbaxOpener
from keras_wavg.files.orbax.steps import is_orbax

Weights = Sequence[float] | None


def is_converted(plan: FilePlan, output: Path) -> bool:
    """Whether folders of Orbax are averaged to a file."""
    is_file = output.name.endswith(SUFFIXES)
    return isinstance(plan.last, OrbaxCheckpoint) and is_file


def without_config(
    paths: Sequence[Path], weights: Weights
) -> tuple[Sequence[Path], Weights, Path | None]:
    """Paths and weights without the `.keras` that only gives its config.

    Beside folders of Orbax, it is the one of weight 0.
    """
    if weights is None or len(weights) != len(paths):
        return paths, weights, None
    if not any(map(is_orbax, paths)):
        return paths, weights, None
    pairs = list(zip(paths, weights, strict=True))
    configs = [p for p, w in pairs if p.suffix == ".keras" and not w]
    kept = [(p, w) for p, w in pairs if p not in configs]
    last = configs[-1] if configs else None
    return [p for p, _ in kept], [w for _, w in kept], last


def config(plan: FilePlan) -> str | bytes:
    """The config of the model.

    Raises:
        ValueError: If no checkpoint has one.
    """
    if "optimizer" in plan.copied.values():
        raise ValueError(
            "The state of an optimizer is kept from a folder of Orbax to "
            "another one. Received: optimizer='last' and a file as `output`. "
            "Write a folder, or pass `optimizer='drop'`."
        )
    if plan.config_of is not None:
        found: bytes = archive_room().read_config(plan.config_of)
        return found
    text = plan.last.read_config()
    if text is None:
        raise ValueError(
            "A folder of Orbax with weights alone has no config of the model, "
            "which says where they are in a file. Received: "
            f"{plan.last.name}. Write a folder, or add a `.keras` of the model "
            "with weight 0."
        )
    return text


def write_file(step: Path, config: str | bytes, output: Path) -> Path:
    """Write the weights in a folder of Orbax as a file of Keras.

    The model is built, so Keras is imported.

    Args:
        step: `pathlib.Path` of the folder.
        config: The config of the model.
        output: `pathlib.Path` to write. Shards are written as one file.

    Returns:
        `pathlib.Path` of the file.
    """
    suffix = ".keras" if output.suffix == ".keras" else ".weights.h5"
    file = output.with_name(f"converted{suffix}")
    checkpoint = OrbaxOpener().open(step)
    arrays = {path: checkpoint.read(path) for path in checkpoint.weights}
    # It imports Keras, which nothing else here needs.
    conversion = importlib.import_module("keras_wavg.conversion")
    conversion.save(config, arrays, file)
    return file
