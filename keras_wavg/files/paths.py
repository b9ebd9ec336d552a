"""The files that are asked for: what is to be read, and what is written."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from keras_wavg import atomic
from keras_wavg.files.checkpoint import SUFFIXES, suffix_of
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.foreign import kind_named
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.orbax.steps import all_steps, is_orbax
from keras_wavg.files.remote import is_remote, located, target_of
from keras_wavg.files.shards import shards_beside

Paths = Sequence[str | os.PathLike[str]]


def refuse_output(output: Path, *, overwrite: bool, paths: Paths = ()) -> None:
    """Refuse a file, or a folder of Orbax, that cannot be written.

    Args:
        output: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.
        paths: See `average_checkpoints`. What is made of checkpoints of Orbax
            may be one.
    """
    is_folder = not output.name.endswith(SUFFIXES) and any(
        is_orbax(located(path)) for path in paths
    )
    if is_folder:
        _require_free_root(output)
    else:
        suffix_of(output, "output")
    # Where objects are stored, there are no folders.
    if not is_remote(output) and not output.parent.is_dir():
        raise FileNotFoundError(
            "The folder of `output` must exist. Received: "
            f"output={str(output)!r}"
        )
    if not is_folder and (
        output.is_dir() or (output.exists() and not overwrite)
    ):
        _refuse_existing(output)


def step_of(plan: FilePlan, output: Path, *, overwrite: bool) -> Path:
    """The folder that is written for a checkpoint of Orbax.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the folder of a step, if its name is a
            number, or of a root, which gets the step of the last checkpoint.
        overwrite: Boolean, whether the step may be there.
    """
    name = plan.last.path.name
    is_step = re.fullmatch(r"\d+", output.name) is not None
    step = output if is_step else output / (name if name.isdigit() else "0")
    if step.exists() and not overwrite:
        _refuse_existing(step)
    return step


def _require_free_root(output: Path) -> None:
    if kind := kind_named(output.name):
        raise ValueError(
            "`output` must end in '.weights.h5', '.weights.json' or '.keras', "
            "or be a folder, which has none of these endings. Received: "
            f"output={str(output)!r}, which looks like {kind.name}"
        )
    # Another process may have begun to write.
    is_empty = output.is_dir() and all(
        path.name.startswith(atomic.PREFIX) for path in output.iterdir()
    )
    if output.exists() and not is_empty and not is_orbax(output):
        raise FileExistsError(
            "`output` must be a new folder, or one of Orbax. Received: "
            f"output={str(output)!r}"
        )


def _refuse_existing(output: Path) -> NoReturn:
    raise FileExistsError(
        "`output` must not exist, unless `overwrite=True`. Received: "
        f"output={str(output)!r}"
    )


def checked(paths: Paths, steps: Sequence[int] | None = None) -> list[Path]:
    """The arguments `paths` and `steps`."""
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(  # noqa: TRY004
            "`paths` must be a list of checkpoints. Received: "
            f"paths={paths!r}. See `keras_wavg.select_checkpoints` for those "
            "in a folder."
        )
    given = [located(path) for path in paths]
    if not given:
        raise ValueError(
            "`paths` must have at least one checkpoint. Received: none"
        )
    return given if steps is None else all_steps(given, steps)


def archive_like(plan: FilePlan, output: Path) -> Path | None:
    """The `.keras` file whose config a `.keras` output takes, if there is one.

    Raises:
        ValueError: If it needs one, or if a checkpoint would be replaced.
    """
    _refuse_input(plan, output)
    if isinstance(plan.last, OrbaxCheckpoint):
        return None
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
    target = target_of(output)
    beside = [] if is_remote(output) else shards_beside(target)
    for path in (target, *beside):
        if any(checkpoint.is_at(path) for checkpoint in plan.checkpoints):
            raise ValueError(
                "`output` must not be one of the checkpoints that are "
                "averaged, nor have a shard of the name of one. Received: "
                f"output={str(output)!r}, which would replace {str(path)!r}. "
                "Choose another name."
            )
