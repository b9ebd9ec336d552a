"""`.keras` files: a zip archive with the weights in it."""

import contextlib
import copy
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from keras_wavg.files.source import Source, printable

WEIGHTS = "model.weights.h5"

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    EOFError,
    struct.error,
)
_MAX_MEMBERS = 10_000
_ENCRYPTED = 1
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
        header = whole.read(member.header_offset, 30)
        name, extra = struct.unpack_from("<2H", header, 26)
        start = member.header_offset + 30 + name + extra
        if not header.startswith(b"PK\3\4") or start > whole.size:
            whole.refuse("it is damaged")
        return Source(path, start, member.file_size)


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


@contextlib.contextmanager
def _archive(source: Source) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(source.path) as archive:
            _check(source, archive)
            yield archive
    except _DAMAGE as error:
        source.refuse(f"it is not a sound zip archive ({error})")


def _check(source: Source, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    names = {member.filename for member in members}
    if len(names) < len(members) or len(members) > _MAX_MEMBERS:
        source.refuse("it has two members of one name, or too many members")
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith("/") or ".." in parts or not name.isprintable():
            source.refuse(f"it has a member named {printable(name)}")
    if any(m.compress_type not in _METHODS for m in members):
        source.refuse("a member in it is compressed by an unusual method")
    total = sum(member.file_size for member in members)
    if total > _MAX_RATIO * source.size + _MAX_SMALL:
        source.refuse(f"it promises {total} bytes, far more than it has")
