"""`.keras` files, which are zip archives."""

import contextlib
import copy
import errno
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from keras_wavg.files.error_text import brief
from keras_wavg.files.input_file import InputFile

WEIGHTS = "model.weights.h5"
CONFIG = "config.json"

# The errors that `zipfile` raises for a damaged archive.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    NotImplementedError,
    UnicodeDecodeError,
    OverflowError,
    EOFError,
    struct.error,
)
_MAX_MEMBERS = 10_000
_MAX_READ = 1 << 20
_ENCRYPTED = 1
# The local header of a member: signature, compression method, lengths of its
# name and of the extra field.
_HEADER = struct.Struct("<4s4xH16x2H")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# Limits of the total size of the members: a multiple of the size of the
# archive, and a number of bytes.
_MAX_RATIO, _MIN_LIMIT = 4, 1 << 26


def open_weights(path: Path) -> InputFile:
    """Open the weights in an archive, without extracting them.

    Args:
        path: `pathlib.Path` of a `.keras` file.

    Returns:
        An `InputFile` in HDF5.

    Raises:
        ValueError: If Keras does not write such an archive.
    """
    with InputFile(path) as file, _open_archive(file) as archive:
        if WEIGHTS not in archive.namelist():
            file.refuse(f"it has no {WEIGHTS}")
        member = archive.getinfo(WEIGHTS)
        if member.compress_type != zipfile.ZIP_STORED or (
            member.flag_bits & _ENCRYPTED
        ):
            file.refuse(
                f"{WEIGHTS} in it is compressed or encrypted. Load the model "
                "and save it again"
            )
        header = file.read(member.header_offset, _HEADER.size)
        signature, method, name_size, extra_size = _HEADER.unpack(header)
        name = file.read(member.header_offset + _HEADER.size, name_size)
        expected = (b"PK\3\4", zipfile.ZIP_STORED, WEIGHTS.encode())
        if (signature, method, name) != expected:
            file.refuse(f"it is damaged: {WEIGHTS} is not at its address")
        start = member.header_offset + _HEADER.size + name_size + extra_size
        return InputFile(path, start, member.file_size, member.CRC)


def read_config(path: Path) -> bytes:
    """Read the config of the model.

    Args:
        path: `pathlib.Path` of a `.keras` file.

    Returns:
        Bytes, JSON.

    Raises:
        ValueError: If Keras does not write such an archive.
    """
    with InputFile(path) as file, _open_archive(file) as archive:
        if CONFIG not in archive.namelist():
            file.refuse(f"it has no {CONFIG}")
        return archive.read(CONFIG)


def write_archive(path: Path, weights: Path, source: Path) -> None:
    """Write a `.keras` file.

    Args:
        path: `pathlib.Path` of the file to write.
        weights: `pathlib.Path` of the HDF5 file with the weights.
        source: `pathlib.Path` of another `.keras` file. Everything but the
            weights is copied from it.

    Raises:
        ValueError: If Keras does not write such an archive as `source`.
    """
    with (
        InputFile(source) as file,
        _open_archive(file) as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for member in old.infolist():
            if member.filename != WEIGHTS:
                info = copy.copy(member)  # `ZipFile.open` changes it
                with old.open(member) as read, new.open(info, "w") as write:
                    shutil.copyfileobj(read, write)
        info = zipfile.ZipInfo(WEIGHTS, (1980, 1, 1, 0, 0, 0))
        info.file_size = weights.stat().st_size
        with weights.open("rb") as read, new.open(info, "w") as write:
            shutil.copyfileobj(read, write, 1 << 20)


class _LimitedReader:
    """A file object for `zipfile` that limits the size of a read.

    `zipfile` reads the whole list of members at once, however long it is.

    Args:
        file: An `InputFile`.
    """

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        position = starts.get(whence, self._file.size) + offset
        if position < 0:
            raise OSError(errno.EINVAL, "Before the first byte")
        self._position = position
        return position

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        left = max(0, self._file.size - self._position)
        count = left if size < 0 else min(size, left)
        if count > _MAX_READ:
            self._file.refuse("the list of its members is too long")
        data = self._file.read(self._position, count)
        self._position += count
        return data


@contextlib.contextmanager
def _open_archive(file: InputFile) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(_LimitedReader(file)) as archive:
            _check_members(file, archive)
            yield archive
    except _ERRORS as error:
        file.refuse(f"it is not a valid zip archive ({brief(str(error))})")


def _check_members(file: InputFile, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members) or len(members) > _MAX_MEMBERS:
        file.refuse("it has two members of the same name, or too many members")
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith("/") or ".." in parts or not name.isprintable():
            file.refuse(f"it has a member named {brief(name)}")
    if any(member.header_offset < 0 for member in members):
        file.refuse("a member in it starts before the file")
    if any(m.compress_type not in _METHODS for m in members):
        file.refuse("a member in it is compressed by an unsupported method")
    total = sum(member.file_size for member in members)
    if total > _MAX_RATIO * file.size + _MIN_LIMIT:
        file.refuse(f"it declares {total} bytes, far more than it has")
