"""`.keras` files: a zip archive with the weights in it."""

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

from keras_wavg.files.source import Source, brief

WEIGHTS = "model.weights.h5"
CONFIG = "config.json"

_DAMAGE = (
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
# Of a member: signature, method, lengths of its name and of what comes after.
_HEADER = struct.Struct("<4s4xH16x2H")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# A member may promise this many bytes for each byte of the archive.
_MAX_RATIO, _MAX_SMALL = 4, 1 << 26


def open_weights(path: Path) -> Source:
    """The weights in an archive, read in place.

    Args:
        path: `pathlib.Path` of a `.keras` file.

    Returns:
        A `Source` of its HDF5 file.

    Raises:
        ValueError: If it is not an archive as Keras writes them.
    """
    with Source(path) as whole, _archive(whole) as archive:
        if WEIGHTS not in archive.namelist():
            whole.refuse(f"it has no {WEIGHTS}")
        member = archive.getinfo(WEIGHTS)
        if member.compress_type != zipfile.ZIP_STORED or (
            member.flag_bits & _ENCRYPTED
        ):
            whole.refuse(
                f"{WEIGHTS} in it is compressed or encrypted. Load the model "
                "and save it again"
            )
        header = whole.read(member.header_offset, _HEADER.size)
        signature, method, name, extra = _HEADER.unpack(header)
        named = whole.read(member.header_offset + _HEADER.size, name)
        if (signature, method, named) != (
            b"PK\3\4",
            zipfile.ZIP_STORED,
            WEIGHTS.encode(),
        ):
            whole.refuse(f"it is damaged: {WEIGHTS} is not where it should be")
        start = member.header_offset + _HEADER.size + name + extra
        return Source(path, start, member.file_size, member.CRC)


def read_config(path: Path) -> bytes:
    """The config of the model in an archive.

    Args:
        path: `pathlib.Path` of a `.keras` file.

    Returns:
        JSON.

    Raises:
        ValueError: If it is not an archive as Keras writes them.
    """
    with Source(path) as source, _archive(source) as archive:
        if CONFIG not in archive.namelist():
            source.refuse(f"it has no {CONFIG}")
        return archive.read(CONFIG)


def write_archive(path: Path, weights: Path, like: Path) -> None:
    """Write a `.keras` file.

    Args:
        path: The file to write.
        weights: The HDF5 file to put in.
        like: Another `.keras` file. All but its weights is taken over as it is.

    Raises:
        ValueError: If `like` is not an archive as Keras writes them.
    """
    with (
        Source(like) as source,
        _archive(source) as old,
        zipfile.ZipFile(path, "w") as new,
    ):
        for member in old.infolist():
            if member.filename != WEIGHTS:
                like_it = copy.copy(member)  # writing changes it
                with old.open(member) as read, new.open(like_it, "w") as write:
                    shutil.copyfileobj(read, write)
        info = zipfile.ZipInfo(WEIGHTS, (1980, 1, 1, 0, 0, 0))
        info.file_size = weights.stat().st_size
        with weights.open("rb") as read, new.open(info, "w") as write:
            shutil.copyfileobj(read, write, 1 << 20)


class _Readable:
    """A source as a file, of which little is read at a time.

    `zipfile` reads the list of members as a whole, however long it is.

    Args:
        source: A `Source`.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}
        at = starts.get(whence, self._source.size) + offset
        if at < 0:
            raise OSError(errno.EINVAL, "Before the first byte")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        """Bytes, as many as there are."""
        left = max(0, self._source.size - self._at)
        count = left if size < 0 else min(size, left)
        if count > _MAX_READ:
            self._source.refuse("the list of its members is too long")
        data = self._source.read(self._at, count)
        self._at += count
        return data


@contextlib.contextmanager
def _archive(source: Source) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(_Readable(source)) as archive:
            _check(source, archive)
            yield archive
    except _DAMAGE as error:
        source.refuse(f"it is not a sound zip archive ({brief(str(error))})")


def _check(source: Source, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members) or len(members) > _MAX_MEMBERS:
        source.refuse("it has two members of one name, or too many members")
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith("/") or ".." in parts or not name.isprintable():
            source.refuse(f"it has a member named {brief(name)}")
    if any(member.header_offset < 0 for member in members):
        source.refuse("a member in it begins before the file")
    if any(m.compress_type not in _METHODS for m in members):
        source.refuse("a member in it is compressed by an unusual method")
    total = sum(member.file_size for member in members)
    if total > _MAX_RATIO * source.size + _MAX_SMALL:
        source.refuse(f"it promises {total} bytes, far more than it has")
