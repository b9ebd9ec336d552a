"""Files and folders that appear whole or not at all."""

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
"""How folders are named that are not whole yet."""


def target_of(path: str | os.PathLike[str]) -> Path:
    """Where a path leads to, through links. One to itself leads nowhere."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, overwrite: bool = True
) -> Iterator[Path]:
    """Context that writes a file elsewhere and moves it into place at its end.

    The file may be a folder.

    Whatever goes wrong, `path` is what it was, or, if the file has parts or is
    a folder, missing. Parts are other files written beside it, such as the
    shards of an index: they are moved first. What was at `path` is removed
    before that, so it never names the wrong parts.

    What a process that was killed has left of the same file is removed.

    Args:
        path: Where the file is to be. A link stays, its target is replaced.
        overwrite: Boolean, whether files may be replaced. They keep their mode.
            Defaults to `True`.

    Yields:
        `pathlib.Path` with the same file name, for the file to be written to.

    Raises:
        FileNotFoundError: If the folder does not exist.
        FileExistsError: If there is a file, also one that appeared meanwhile,
            and not `overwrite`. It stays, and nothing is written.
    """
    target = target_of(path)
    try:
        with folder_beside(target) as folder:
            written = folder / target.name
            yield written
            parts = [part for part in folder.iterdir() if part != written]
            _move_all([*parts, written], target, overwrite=overwrite)
    except OSError as error:
        system.raise_with_name(error, target)


def move(folder: Path, target: Path, *, overwrite: bool) -> None:
    """Move a folder into place, once it is on the disk.

    Args:
        folder: The folder.
        target: Where it is to be, in the same file system.
        overwrite: Boolean, whether one that is there may be replaced.

    Raises:
        FileExistsError: If there is one and not `overwrite`.
    """
    _move_all([folder], target, overwrite=overwrite)


def _move_all(files: Sequence[Path], target: Path, *, overwrite: bool) -> None:
    for file in files:
        for part in (*file.rglob("*"), file):
            system.store(part)
    into_place = _replace if overwrite else _add
    into_place(files, target)
    system.store(target.parent)


def _replace(files: Sequence[Path], target: Path) -> None:
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            file.chmod(stat.S_IMODE(target.with_name(file.name).stat().st_mode))
    if len(files) > 1:
        target.unlink(missing_ok=True)
    for file in files:
        _move(file, target.with_name(file.name))


def _move(file: Path, place: Path) -> None:
    if not file.is_dir() or not place.exists():
        file.replace(place)
        return
    # A folder cannot be moved over another one.
    old = file.with_name(f"{file.name}.old")
    place.replace(old)
    try:
        file.replace(place)
    except BaseException:
        old.replace(place)
        raise


def _add(files: Sequence[Path], target: Path) -> None:
    with contextlib.ExitStack() as undo:
        for file in files:
            place = target.with_name(file.name)
            try:
                system.move_to_free_place(file, place)
            except FileExistsError as error:
                raise FileExistsError(
                    "A file is replaced only with `overwrite=True`. Received: "
                    f"{str(place)!r}, which has appeared meanwhile."
                ) from error
            undo.callback(place.unlink)
        undo.pop_all()


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Context with a new folder beside a file, which is removed at its end.

    A move within a file system is atomic. What a process that was killed has
    left of the same file is removed.
    """
    # Short, as the name of the file may be as long as a name can be.
    prefix = f"{PREFIX}-{zlib.crc32(os.fsencode(target.name)):08x}-"
    for left in target.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), system.locked(left) as is_ours:
            if is_ours:
                shutil.rmtree(left, ignore_errors=True)
    # It gets its name once it is locked: another run would remove it before.
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f"{PREFIX}-"))
    try:
        with system.locked(folder):
            name = f"{prefix}{folder.name[-8:]}"
            folder = folder.rename(folder.with_name(name))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
