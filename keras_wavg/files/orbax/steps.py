"""Which folders are Orbax checkpoints, and of which step."""

import re
from collections.abc import Sequence
from pathlib import Path

from keras_wavg.files.orbax.names import METADATA, PYTREE
from keras_wavg.files.remote import reached
from keras_wavg.files.source import brief, printable

_UNFINISHED = ".orbax-checkpoint-tmp"


def is_step(path: Path) -> bool:
    """Whether a folder is the checkpoint of one step."""
    return (path / METADATA).is_file() or (path / PYTREE).is_dir()


def steps_in(root: Path) -> dict[int, Path]:
    """The folders of the steps that a root folder has, the first one first."""
    if not root.is_dir():
        return {}
    numbered = [p for p in root.iterdir() if re.fullmatch(r"\d+", p.name)]
    found = {int(path.name): path for path in numbered if is_step(path)}
    return dict(sorted(found.items()))


def all_steps(paths: Sequence[Path], steps: Sequence[int]) -> list[Path]:
    """The folders of some steps of root folders.

    Raises:
        ValueError: If one is no root folder, or has not each of the steps.
    """
    chosen: list[Path] = []
    for root in paths:
        found = steps_in(root)
        missing = [step for step in steps if step not in found]
        if missing or not steps:
            raise ValueError(
                "With `steps`, `paths` must be root folders of Orbax that have "
                f"each step. Received: {printable(str(root))}, which has "
                f"{brief(str(list(found) or 'none'))}, and steps={list(steps)}"
            )
        chosen += [found[step] for step in steps]
    return chosen


def is_orbax(path: Path) -> bool:
    """Whether a path is that of a step or of a root folder."""
    with reached(path):
        return _UNFINISHED in path.name or is_step(path) or bool(steps_in(path))


def step_folder(path: Path) -> Path:
    """The folder of a step: `path` itself, or the latest step of a root.

    Raises:
        ValueError: If the step is still being written.
    """
    folder = path if is_step(path) else max(steps_in(path).items())[1]
    if _UNFINISHED in folder.name:
        raise ValueError(
            "A step of Orbax must have been written to its end. Received: "
            f"{printable(str(path))}, which has not. Take another step."
        )
    return folder
