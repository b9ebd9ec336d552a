"""Opens checkpoints of every format."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from keras_wavg.files.checkpoint import SUFFIXES, Checkpoint
from keras_wavg.files.foreign import kind_of
from keras_wavg.files.hdf5_checkpoint import HDF5Opener
from keras_wavg.files.orbax.reading import OrbaxOpener
from keras_wavg.files.orbax.steps import is_orbax, step_folder, steps_in
from keras_wavg.files.orbax.store import base_of
from keras_wavg.files.remote import (
    is_remote,
    local_copy,
    located,
    reached,
)

_SHARD = re.compile(r"(?P<base>.*)_\d{5}\.weights\.h5")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder: steps of Orbax, or files by their names."""
    if steps := steps_in(folder):
        return list(steps.values())
    return sorted(filter(_is_checkpoint, folder.iterdir()))


def _is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a checkpoint, and not of a part of one."""
    shard = _SHARD.fullmatch(path.name)
    if shard and path.with_name(f"{shard['base']}.weights.json").exists():
        return False
    return path.name.endswith(SUFFIXES)


class Opener:
    """Opens checkpoints, and reads the same structure only once."""

    def __init__(self) -> None:
        self._hdf5, self._orbax = HDF5Opener(), OrbaxOpener()

    @contextlib.contextmanager
    def open(self, path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
        """Context with a checkpoint.

        Args:
            path: The file, by one of `SUFFIXES`, or a folder of Orbax.

        Yields:
            A `Checkpoint`.

        Raises:
            ValueError: If it is not as Keras writes it.
            OSError: If it cannot be opened.
        """
        place = located(path)
        with contextlib.ExitStack() as stack:
            try:
                with reached(place):
                    checkpoint = self._opened(place, stack)
            except (ValueError, FileNotFoundError) as error:
                if kind := kind_of(place):
                    raise ValueError(f"{error} {kind}.") from error
                raise
            yield checkpoint

    def _opened(self, path: Path, stack: contextlib.ExitStack) -> Checkpoint:
        if is_orbax(path):
            if not is_remote(path) or base_of(path):
                return self._orbax.open(path)
            step = step_folder(path)
            copy = stack.enter_context(local_copy(step))
            return replace(self._orbax.open(copy), origin=step)
        if not is_remote(path):
            return self._hdf5.open(path, stack)
        copy = stack.enter_context(local_copy(path))
        return replace(self._hdf5.open(copy, stack), origin=path)
