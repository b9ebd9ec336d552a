"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context that writes a file elsewhere and moves it into place at its end.

    Whatever goes wrong, `path` is what it was, or, if the file has parts,
    missing. Parts are other files written beside it, such as the shards of an
    index: they are moved first. What was at `path` is removed before that, so
    it never names the wrong parts.

    Args:
        path: Where the file is to be. A link stays, its target is replaced.

    Yields:
        `pathlib.Path` with the same file name, for the file to be written to.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    target = Path(path).resolve()
    # In the same folder, because only within a file system is a move atomic.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        written = Path(folder) / target.name
        yield written
        parts = [part for part in Path(folder).iterdir() if part != written]
        for file in (*parts, written):
            _sync(file)
        if parts:
            target.unlink(missing_ok=True)
        for file in (*parts, written):
            file.replace(target.with_name(file.name))
        _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
