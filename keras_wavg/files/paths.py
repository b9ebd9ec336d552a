"""Validates the paths of checkpoints to read and of the output to write."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from keras_wavg import atomic
from keras_wavg.files.checkpoint import SUFFIXES, suffix_of
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint
from keras_wavg.files.orbax.steps import is_orbax, select_steps
from keras_wavg.files.remote import as_path, is_remote, target_of
from keras_wavg.files.shards import shards_beside
from keras_wavg.files.unsupported_formats import format_of_name

Paths = Sequence[str | os.PathLike[str]]


def checkpoint_paths(
    filepaths: Paths, steps: Sequence[int] | None = None
) -> list[Path]:
    """The arguments `filepaths` and `steps` as a list of paths."""
    if isinstance(filepaths, (str, os.PathLike)):
        raise ValueError(  # noqa: TRY004
            "`filepaths` must be a list of checkpoints. Received: "
            f"filepaths={filepaths!r}. See `keras_wavg.select_checkpoints` for "
            "those in a directory."
        )
    paths = [as_path(path) for path in filepaths]
    if not paths:
        raise ValueError(
            "`filepaths` must have at least one checkpoint. Received: none"
        )
    return paths if steps is None else select_steps(paths, steps)


def check_output(output: Path, *, overwrite: bool, paths: Paths = ()) -> None:
    """Refuse an output that cannot be written.

    Args:
        output: `pathlib.Path` of the output.
        overwrite: See `average_checkpoints`.
        paths: Sequence of the checkpoints to average. The output may be an
            Orbax directory only if they are Orbax checkpoints.

    Raises:
        ValueError: If the name has none of the supported suffixes.
        FileNotFoundError: If the directory of the output is missing.
        FileExistsError: If the output exists and `overwrite` is false.
    """
    is_directory = not output.name.endswith(SUFFIXES) and any(
        is_orbax(as_path(path)) for path in paths
    )
    if is_directory:
        _check_orbax_root(output)
    else:
        suffix_of(output, "output_filepath")
    # Object stores have no directories.
    if not is_remote(output) and not output.parent.is_dir():
        raise FileNotFoundError(
            "The directory of `output_filepath` must exist. Received: "
            f"output_filepath={str(output)!r}"
        )
    if not is_directory and (
        output.is_dir() or (output.exists() and not overwrite)
    ):
        _refuse_existing(output)


def step_to_write(plan: FilePlan, output: Path, *, overwrite: bool) -> Path:
    """The directory of the step to write, for Orbax checkpoints.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the step if its name is a number, or else of
            its parent directory. Then the step is that of the last checkpoint.
        overwrite: Boolean, whether the step may exist.

    Raises:
        FileExistsError: If the step exists and `overwrite` is false.
    """
    name = plan.last.path.name
    is_step = re.fullmatch(r"\d+", output.name) is not None
    step = output if is_step else output / (name if name.isdigit() else "0")
    if step.exists() and not overwrite:
        _refuse_existing(step)
    return step


def _check_orbax_root(output: Path) -> None:
    if found := format_of_name(output.name):
        raise ValueError(
            "`output_filepath` must end in '.weights.h5', '.weights.json' or "
            "'.keras', or be a directory with no such suffix. Received: "
            f"output_filepath={str(output)!r}, which looks like {found.name}"
        )
    # Another process may have started to write.
    is_empty = output.is_dir() and all(
        path.name.startswith(atomic.PREFIX) for path in output.iterdir()
    )
    if output.exists() and not is_empty and not is_orbax(output):
        raise FileExistsError(
            "`output_filepath` must be a new directory or an Orbax directory. "
            f"Received: output_filepath={str(output)!r}"
        )


def _refuse_existing(output: Path) -> NoReturn:
    raise FileExistsError(
        "`output_filepath` must not exist, unless `overwrite=True`. Received: "
        f"output_filepath={str(output)!r}"
    )


def config_archive(plan: FilePlan, output: Path) -> Path | None:
    """The `.keras` file whose config is copied to a `.keras` output, if any.

    Raises:
        ValueError: If no checkpoint has the config that the output needs, or
            if the output would replace a checkpoint.
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
            "A `.keras` output needs the config of the model, which is copied "
            "from a `.keras` file. Received: "
            f"output_filepath={str(output)!r} and no `.keras` file in "
            "`filepaths`. Write a `.weights.h5` file, or add a `.keras` file "
            "with weight 0."
        )
    return archives[-1] if output.name.endswith(".keras") else None


def _refuse_input(plan: FilePlan, output: Path) -> None:
    target = target_of(output)
    beside = [] if is_remote(output) else shards_beside(target)
    for path in (target, *beside):
        if any(checkpoint.is_at(path) for checkpoint in plan.checkpoints):
            raise ValueError(
                "Neither `output_filepath` nor one of its shards may be one of "
                "the averaged checkpoints. Received: "
                f"output_filepath={str(output)!r}, which would replace "
                f"{str(path)!r}. Choose another name."
            )
