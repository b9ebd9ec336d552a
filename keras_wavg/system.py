"""Operating system calls, with substitutes where the platform lacks one.

Windows and earlier versions of macOS lack some of them. The substitutes are
slower.
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
_fadvise: Any = getattr(os, "posix_fadvise", None)
_link: Any = getattr(os, "link", None)
# Without `preadv` and `pwrite`, threads share the position in the file.
_position_lock = threading.Lock()


def _flags(*names: str) -> int:
    return sum(getattr(os, name, 0) for name in names)


def open_to_read(path: Path) -> int:
    """Open a file and return its descriptor.

    A pipe is opened without waiting for a writer.
    """
    return os.open(
        path, os.O_RDONLY | _flags("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    )


def open_to_write(path: Path) -> int:
    """Open a file, creating it if it is missing, and return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | _flags("O_CLOEXEC", "O_BINARY")
    return os.open(path, flags, 0o666)


def read_at(descriptor: int, view: memoryview, offset: int) -> int:
    """Read bytes from an offset into a view.

    Returns:
        Integer, the number of bytes, 0 at the end of the file.
    """
    if _preadv is not None:
        count: int = _preadv(descriptor, [view], offset)
        return count
    with _position_lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of the bytes at an offset."""
    done = 0
    while done < len(data):
        done += _write_at(descriptor, data[done:], offset + done)


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    if _pwrite is not None:
        count: int = _pwrite(descriptor, data, offset)
        return count
    with _position_lock:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Start to flush written bytes to the disk, so less is left for the end."""
    if _fadvise is not None:
        _fadvise(descriptor, offset, size, os.POSIX_FADV_DONTNEED)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a directory if possible, is stored on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_without_replacing(path: Path, target: Path) -> None:
    """Move a file or a directory to a path that does not exist.

    Raises:
        FileExistsError: If the target exists. Nothing is changed. An empty
            directory may be replaced by a directory.
    """
    if path.is_dir():
        try:
            path.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(str(target)) from error
            raise
        return
    try:
        if _link is None:
            raise OSError  # noqa: TRY301
        _link(path, target)
    except FileExistsError:
        raise
    except OSError:
        # The file system has no links. An empty file reserves the target.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            path.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        path.unlink()


def raise_with_path(error: OSError, path: Path) -> NoReturn:
    """Raise an error of the operating system with a path, if it has none."""
    if error.errno is None or error.filename is not None:
        raise error
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[bool]:
    """Context that locks a directory against other processes.

    The lock is released at the latest when the process ends or is killed.

    Yields:
        Boolean, whether the directory could be locked.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_locked = True
        except OSError:  # locked by another process, or not supported
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)
