"""Opens checkpoints of every format."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from keras_wavg.files.checkpoint import SUFFIXES, Checkpoint
from keras_wavg.files.hdf5_checkpoint import HDF5Opener
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxOpener
from keras_wavg.files.orbax.steps import find_step, steps_in
from keras_wavg.files.orbax.store import remote_kvstore
from keras_wavg.files.remote import (
    as_path,
    is_remote,
    local_copy,
    network_errors_as_os_errors,
)
from keras_wavg.files.unsupported_formats import identify_format

_SHARD = re.compile(r"(?P<base>.*)_\d{5}\.weights\.h5")


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints in a directory: Orbax steps, or files sorted by name."""
    if steps := steps_in(directory):
        return list(steps.values())
    return sorted(filter(_is_checkpoint, directory.iterdir()))


def _is_checkpoint(path: Path) -> bool:
    """Return whether the name is that of a checkpoint, and not of a shard."""
    shard = _SHARD.fullmatch(path.name)
    if shard and path.with_name(f"{shard['base']}.weights.json").exists():
        return False
    return path.name.endswith(SUFFIXES)


class CheckpointOpener:
    """Opens checkpoints, and reads equal metadata only once."""

    def __init__(self) -> None:
        self._hdf5, self._orbax = HDF5Opener(), OrbaxOpener()

    @contextlib.contextmanager
    def open(self, filepath: str | os.PathLike[str]) -> Iterator[Checkpoint]:
        """Context with an open checkpoint.

        Args:
            filepath: String or path-like, a file with one of `SUFFIXES`, or an
                Orbax directory.

        Yields:
            A `Checkpoint`.

        Raises:
            ValueError: If Keras does not write such a checkpoint.
            OSError: If it cannot be opened.
        """
        path = as_path(filepath)
        with contextlib.ExitStack() as stack:
            try:
                with network_errors_as_os_errors(path):
                    checkpoint = self._open(path, stack)
            except (ValueError, FileNotFoundError) as error:
                if unsupported := identify_format(path):
                    raise ValueError(f"{error} {unsupported}.") from error
                raise
            yield checkpoint

    def _open(self, path: Path, stack: contextlib.ExitStack) -> Checkpoint:
        step = find_step(path)
        if step and (not is_remote(step) or remote_kvstore(step)):
            return self._orbax.open(step)
        if not is_remote(path):
            return self._hdf5.open(path, stack)
        copy = stack.enter_context(local_copy(step or path))
        if step:
            return replace(self._orbax.open(copy), remote_path=step)
        return replace(self._hdf5.open(copy, stack), remote_path=path)
