"""A file that is read piece by piece, and must not change meanwhile."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, Self

from keras_wavg import system

_MOST_SHOWN = 200


class Source:
    """A regular file, or a part of one, open for reading.

    Args:
        path: The file.
        start: Integer, the byte of the file that is the first one here.
        size: Integer, how many bytes there are here, or `None` for all.
        crc: Integer, the CRC-32 that these bytes are to have, or `None` if
            nobody knows.

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
        """Let the file go. A later read opens it for itself."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file.

        Raises:
            ValueError: If there are fewer.
        """
        self._require(offset, size)
        data = bytearray(size)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill a writable view with bytes of the file.

        Raises:
            ValueError: If there are fewer.
            OSError: If they cannot be read.
        """
        try:
            self._read_into(view, offset)
        except OSError as error:
            system.raise_with_name(error, self.path)

    def _read_into(self, view: memoryview, offset: int) -> None:
        size = len(view)
        self._require(offset, size)
        if self._descriptor is not None:
            # For a small array, the context below takes longer than the read.
            at = self._start + offset
            count = system.read_at(self._descriptor, view, at)
            if count == size:
                return
        with self._opened() as descriptor:
            done = 0
            while done < size:
                at = self._start + offset + done
                count = system.read_at(descriptor, view[done:], at)
                if not count:
                    self.refuse("it became shorter while it was read")
                done += count

    def check_unchanged(self) -> None:
        """Refuse a file that has been written to since it was opened.

        Raises:
            ValueError: If it was.
        """
        with self._opened() as descriptor:
            self._check(os.fstat(descriptor))

    def refuse(self, why: str, at: str = "") -> NoReturn:
        """Raise the error that names the file, and a path inside it."""
        place = f", at {brief(at)}" if at else ""
        raise ValueError(
            "Checkpoints must be whole files as Keras writes them. Received: "
            f"{printable(str(self.path))}{place}: {why}."
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self._descriptor is not None:
            yield self._descriptor
            return
        descriptor = system.open_to_read(self.path)
        try:
            self._check(os.fstat(descriptor))
            yield descriptor
        finally:
            os.close(descriptor)

    def _require(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.size:
            self.refuse("it ends too early, or points outside of itself")

    def _check(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            self.refuse("it was changed while it was read")


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return ascii(text)[1:-1] if not text.isprintable() else text


def brief(text: str) -> str:
    """A text of a file, for an error: printable, and not too long."""
    if len(text) > _MOST_SHOWN:
        text = f"{text[:_MOST_SHOWN]}... ({len(text):,} characters)"
    return printable(text)


def _identity(status: os.stat_result) -> tuple[Any, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
