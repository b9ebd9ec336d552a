"""Finds the directories of Orbax checkpoints."""

import re
from collections.abc import Sequence
from pathlib import Path

from keras_wavg.files.error_text import brief, printable
from keras_wavg.files.orbax.file_names import METADATA, PYTREE
from keras_wavg.files.remote import network_errors_as_os_errors

_UNFINISHED = ".orbax-checkpoint-tmp"


def is_step(path: Path) -> bool:
    """Return whether a path is the directory of a step."""
    return (path / METADATA).is_file() or (path / PYTREE).is_dir()


def steps_in(root: Path) -> dict[int, Path]:
    """The steps in a root directory and their directories, in order."""
    if not root.is_dir():
        return {}
    numbered = [p for p in root.iterdir() if re.fullmatch(r"\d+", p.name)]
    steps = {int(path.name): path for path in numbered if is_step(path)}
    return dict(sorted(steps.items()))


def select_steps(roots: Sequence[Path], steps: Sequence[int]) -> list[Path]:
    """The directories of some steps in each root directory.

    Raises:
        ValueError: If a path is not a root directory, or lacks a step.
    """
    selected: list[Path] = []
    for root in roots:
        found = steps_in(root)
        missing = [step for step in steps if step not in found]
        if missing or not steps:
            raise ValueError(
                "With `steps`, each of `filepaths` must be a root directory of "
                "Orbax that has all of these steps. Received: "
                f"{printable(str(root))}, which has "
                f"{brief(str(list(found) or 'none'))}, and steps={list(steps)}"
            )
        selected += [found[step] for step in steps]
    return selected


def is_orbax(path: Path) -> bool:
    """Return whether a path is the directory of a step, or a root directory."""
    return _UNFINISHED in path.name or find_step(path) is not None


def find_step(path: Path) -> Path | None:
    """The directory of a step: the path itself, or the latest step in a root.

    Returns:
        `pathlib.Path`, or `None` if the path is neither.

    Raises:
        ValueError: If the step is not finished.
        OSError: If a remote path cannot be reached.
    """
    if _UNFINISHED in path.name:
        raise ValueError(
            "Writing an Orbax step must have finished. Received: "
            f"{printable(str(path))}, which has not. Choose another step."
        )
    with network_errors_as_os_errors(path):
        if not path.is_dir():
            return None
        if is_step(path):
            return path
        return next(reversed(steps_in(path).values()), None)
