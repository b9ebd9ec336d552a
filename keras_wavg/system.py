"""Calls of the operating system, of which no platform has all.

Where one is missing, as on Windows and on older versions of macOS, something
slower does the same.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_preadv: Any = getattr(os, "preadv", None)
_pwrite: Any = getattr(os, "pwrite", None)
_advise: Any = getattr(os, "posix_fadvise", None)
_link: Any = getattr(os, "link", None)
# Of a file that has no place of its own for each call.
_one_at_a_time = threading.Lock()


def _flags(*names: str) -> int:
    return sum(getattr(os, name, 0) for name in names)


def open_to_read(path: Path) -> int:
    """A descriptor of a file. A pipe does not wait for its writer."""
    return os.open(
        path, os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    )


def open_to_write(path: Path) -> int:
    """A descriptor of a file, which is made if it is missing."""
    flags = os.O_RDWR | os.O_CREAT | _flags("O_CLOEXEC", "O_BINARY")
    return os.open(path, flags, 0o666)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read bytes into a view.

    Returns:
        Integer, how many. 0 at the end of the file.
    """
    if _preadv is not None:
        count: int = _preadv(descriptor, [view], offset)
        return count
    with _one_at_a_time:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: memoryview, offset: int) -> int:
    """Write bytes.

    Returns:
        Integer, how many.
    """
    if _pwrite is not None:
        count: int = _pwrite(descriptor, data, offset)
        return count
    with _one_at_a_time:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def begin_to_store(descriptor: int, offset: int, size: int) -> None:
    """Have written bytes brought to the disk soon, and not all at the end."""
    if _advise is not None:
        _advise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def store(path: Path) -> None:
    """Wait until a file is on the disk, or, where it can be had, a folder."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_to_free_place(file: Path, target: Path) -> None:
    """Move a file, or a folder, to where there is none.

    Raises:
        FileExistsError: If there is one. Nothing is changed then. An empty
            folder is none.
    """
    if file.is_dir():
        try:
            file.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(str(target)) from error
            raise
        return
    try:
        if _link is None:
            raise OSError  # noqa: TRY301
        _link(file, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links. A new, empty file keeps the place.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            file.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        file.unlink()


def raise_with_name(error: OSError, path: Path) -> NoReturn:
    """Raise an error of the system so that it names a file."""
    if error.errno is None or error.filename is not None:
        raise error
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Context in which no other process has the lock of a folder.

    It ends with the process, however that ends.

    Yields:
        Boolean, whether the lock could be had.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:  # another process has it, or there are none here
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
