"""Writes files and directories atomically."""

import contextlib
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from keras_wavg import system

PREFIX = ".keras_wavg"
"""Prefix of the names of temporary directories."""


def target_of(path: str | os.PathLike[str]) -> Path:
    """The path after following links. A link to itself is its own target."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, overwrite: bool = True
) -> Iterator[Path]:
    """Context that writes a file or a directory atomically.

    It is written to a temporary directory, and moved into place at the end of
    the context. After an error or a sudden end of the process, `path` is
    unchanged, or missing if it is a directory or has parts. Parts are other
    files that are written beside it, such as the shards of an index. They are
    moved first, after the old file at `path` was removed, so that it never
    names the wrong parts.

    Temporary directories that killed processes left for the same path are
    removed.

    Args:
        path: String or path-like. If it is a link, its target is replaced.
        overwrite: Boolean, whether to replace existing files. They keep their
            mode. Defaults to `True`.

    Yields:
        `pathlib.Path` of the temporary file, which has the same name.

    Raises:
        FileNotFoundError: If the directory of `path` is missing.
        FileExistsError: If the file exists at the end of the context and
            `overwrite` is false. It is not changed.
    """
    target = target_of(path)
    try:
        with temporary_directory_beside(target) as directory:
            temporary = directory / target.name
            yield temporary
            parts = [part for part in directory.iterdir() if part != temporary]
            _move_all([*parts, temporary], target, overwrite=overwrite)
    except OSError as error:
        system.raise_with_path(error, target)


def move(directory: Path, target: Path, *, overwrite: bool) -> None:
    """Flush a directory to the disk, and move it into place.

    Args:
        directory: `pathlib.Path` of the directory.
        target: `pathlib.Path` in the same file system.
        overwrite: Boolean, whether to replace an existing directory.

    Raises:
        FileExistsError: If the target exists and `overwrite` is false.
    """
    _move_all([directory], target, overwrite=overwrite)


def _move_all(files: Sequence[Path], target: Path, *, overwrite: bool) -> None:
    for file in files:
        for part in (*file.rglob("*"), file):
            system.flush_to_disk(part)
    move_into_place = _replace if overwrite else _add
    move_into_place(files, target)
    system.flush_to_disk(target.parent)


def _replace(files: Sequence[Path], target: Path) -> None:
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.chmod(stat.S_IMODE(target.with_name(file.name).stat().st_mode))
    if len(files) > 1:
        target.unlink(missing_ok=True)
    for file in files:
        _move(file, target.with_name(file.name))


def _move(file: Path, target: Path) -> None:
    if not file.is_dir() or not target.exists():
        file.replace(target)
        return
    # A directory cannot replace another one that is not empty.
    old = file.with_name(f"{file.name}.old")
    target.replace(old)
    try:
        file.replace(target)
    except BaseException:
        old.replace(target)
        raise


def _add(files: Sequence[Path], target: Path) -> None:
    with contextlib.ExitStack() as undo:
        for file in files:
            path = target.with_name(file.name)
            try:
                system.move_without_replacing(file, path)
            except FileExistsError as error:
                raise FileExistsError(
                    "A file is replaced only with `overwrite=True`. Received: "
                    f"{str(path)!r}, which another process has created"
                ) from error
            undo.callback(path.unlink)
        undo.pop_all()


@contextlib.contextmanager
def temporary_directory_beside(path: Path) -> Iterator[Path]:
    """Context with a temporary directory beside a path.

    It is in the same file system, where a move is atomic. Directories that
    killed processes left for the same path are removed.
    """
    # A checksum, as the name of the file may have the maximum length.
    prefix = f"{PREFIX}-{zlib.crc32(os.fsencode(path.name)):08x}-"
    for left in path.parent.glob(f"{prefix}*"):
        with (
            contextlib.suppress(OSError),
            system.directory_lock(left) as is_locked,
        ):
            if is_locked:  # its process has ended
                shutil.rmtree(left, ignore_errors=True)
    # Renamed only after it is locked, or another process could remove it.
    directory = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{PREFIX}-"))
    try:
        with system.directory_lock(directory):
            name = f"{prefix}{directory.name[-8:]}"
            directory = directory.rename(directory.with_name(name))
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
