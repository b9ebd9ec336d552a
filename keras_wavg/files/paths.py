"""The files that are asked for: what is to be read, and what is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from keras_wavg import atomic
from keras_wavg.files.checkpoint import suffix_of
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.shards import shards_beside

Paths = Sequence[str | os.PathLike[str]]


def refuse_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written."""
    suffix_of(output, "output")
    if not output.parent.is_dir():
        raise FileNotFoundError(
            "The folder of `output` must exist. Received: "
            f"output={str(output)!r}"
        )
    if output.is_dir() or (output.exists() and not overwrite):
        raise FileExistsError(
            "`output` must not exist, unless `overwrite=True`. Received: "
            f"output={str(output)!r}"
        )


def checked(paths: Paths) -> list[Path]:
    """The argument `paths`."""
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(  # noqa: TRY004
            "`paths` must be a list of checkpoints. Received: "
            f"paths={paths!r}. See `keras_wavg.select_checkpoints` for those "
            "in a folder."
        )
    given = [Path(path) for path in paths]
    if not given:
        raise ValueError(
            "`paths` must have at least one checkpoint. Received: none"
        )
    return given


def archive_like(plan: FilePlan, output: Path) -> Path | None:
    """The `.keras` file whose config a `.keras` output takes, if there is one.

    Raises:
        ValueError: If it needs one, or if a checkpoint would be replaced.
    """
    _refuse_input(plan, output)
    archives = [
        checkpoint.path
        for checkpoint in plan.checkpoints
        if checkpoint.path.name.endswith(".keras")
    ]
    if output.name.endswith(".keras") and not archives:
        raise ValueError(
            "A `.keras` file has the config of the model, which only another "
            f"one has. Received: output={str(output)!r} and no `.keras` among "
            "`paths`. Write a `.weights.h5`, or add one with weight 0."
        )
    return archives[-1] if output.name.endswith(".keras") else None


def _refuse_input(plan: FilePlan, output: Path) -> None:
    """Refuse an output that would replace a checkpoint, as a shard may."""
    target = atomic.target_of(output)
    for path in (target, *shards_beside(target)):
        if any(checkpoint.is_at(path) for checkpoint in plan.checkpoints):
            raise ValueError(
                "`output` must not be one of the checkpoints that are "
                "averaged, nor have a shard of the name of one. Received: "
                f"output={str(output)!r}, which would replace {str(path)!r}. "
                "Choose another name."
            )
