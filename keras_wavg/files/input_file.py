"""A file that is read in blocks and must not change while it is read."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

from keras_wavg import system
from keras_wavg.files.error_text import brief, printable


class InputFile:
    """A regular file, or a range of its bytes, open for reading.

    Args:
        path: Path of the file.
        start: Integer, the first byte of the range. Offsets are relative to it.
        size: Integer, the length of the range in bytes, or `None` for the rest
            of the file.
        crc: Integer, the CRC-32 that the range must have, or `None` if it is
            unknown.

    Raises:
        ValueError: If it is not a regular file.
        OSError: If it cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start: int = 0,
        size: int | None = None,
        crc: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.crc = crc
        self._start = start
        self._descriptor: int | None = None
        descriptor = system.open_to_read(self.path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            self.refuse("it is not a regular file")
        self._descriptor = descriptor
        self._identity = _identity(status)
        self.size = status.st_size - start if size is None else size
        if start + self.size > status.st_size:
            self.close()
            self.refuse("it is cut off")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Each later read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`.

        Raises:
            ValueError: If the file ends before that.
        """
        self._require(offset, size)
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill a writable view with the bytes from `offset`.

        Raises:
            ValueError: If the file ends before the view is full.
            OSError: If it cannot be read.
        """
        try:
            self._read_into(view, offset)
        except OSError as error:
            system.raise_with_path(error, self.path)

    def _read_into(self, view: memoryview, offset: int) -> None:
        size = len(view)
        self._require(offset, size)
        if self._descriptor is not None:
            # For a small array, the context below takes longer than the read.
            at = self._start + offset
            count = system.read_at(self._descriptor, view, at)
            if count == size:
                return
        with self._open_descriptor() as descriptor:
            done = 0
            while done < size:
                at = self._start + offset + done
                count = system.read_at(descriptor, view[done:], at)
                if not count:
                    self.refuse("it became shorter while it was read")
                done += count

    def check_unchanged(self) -> None:
        """Check that the file was not written to since it was opened.

        Raises:
            ValueError: If it was.
        """
        with self._open_descriptor() as descriptor:
            self._check_identity(descriptor)

    def refuse(self, why: str, inside: str = "") -> NoReturn:
        """Raise the error that names the file, and a path inside it."""
        where = f", at {brief(inside)}" if inside else ""
        raise ValueError(
            "A checkpoint must be a complete file that Keras wrote. Received: "
            f"{printable(str(self.path))}{where}: {why}."
        )

    @contextlib.contextmanager
    def _open_descriptor(self) -> Iterator[int]:
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = system.open_to_read(self.path)
        try:
            self._check_identity(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _require(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            self.refuse("it ends too early, or an address in it is outside it")

    def _check_identity(self, descriptor: int) -> None:
        if _identity(os.fstat(descriptor)) != self._identity:
            self.refuse("it was changed while it was read")


def _identity(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
