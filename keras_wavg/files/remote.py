"""Checkpoints on other machines, by their URLs.

`universal_pathlib` gives URLs the methods of `pathlib.Path`, by `fsspec`.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from keras_wavg import atomic, system
from keras_wavg.files.orbax.names import METADATA
from keras_wavg.files.shards import read_index
from keras_wavg.files.source import brief

AnyPath = str | os.PathLike[str]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Fewer bytes at a time, or one range after the other, wait for the network.
_RANGE, _AT_ONCE = 32 << 20, 4


def located(path: AnyPath) -> Path:
    """A path of this machine, or of another one, if it is a URL.

    Raises:
        ImportError: If what a URL needs is not installed.
    """
    if is_remote(path):
        return path  # type: ignore[return-value]
    if not isinstance(path, str) or not _URL.match(path):
        return Path(path)
    try:
        from upath import UPath  # noqa: PLC0415 - it takes a while
    except ImportError as error:
        raise ImportError(
            "URLs need `universal_pathlib`. Install it: "
            'pip install "keras-wavg[remote]", and the package for this kind '
            f"of URL, such as `s3fs` or `gcsfs`. Received: {path!r}"
        ) from error
    found: Path = UPath(path)
    return found


def is_remote(path: AnyPath) -> bool:
    """Whether a path is on another machine."""
    return hasattr(path, "fs")


@contextlib.contextmanager
def reached(path: AnyPath) -> Iterator[None]:
    """Context in which all errors of the network are an `OSError`."""
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        # The packages for URLs have no type of error in common.
        text = brief(" ".join(str(error).split()))
        raise OSError(f"{path} cannot be reached: {text}") from error


def target_of(path: Path) -> Path:
    """Where a path of this machine leads to, through links, or a remote one."""
    return path if is_remote(path) else atomic.target_of(path)


@contextlib.contextmanager
def local_copy(path: Any) -> Iterator[Path]:
    """Context with a copy of a file, its shards, or a folder on this machine.

    Args:
        path: A remote path.

    Raises:
        ValueError: If the file changes while it is copied.
        OSError: If it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="keras_wavg-") as folder:
        copy = Path(folder, path.name)
        try:
            if path.is_dir():
                for part in path.rglob("*"):
                    if not part.is_dir():
                        place = copy / part.relative_to(path).as_posix()
                        place.parent.mkdir(parents=True, exist_ok=True)
                        _copy(part, place)
            else:
                _copy(path, copy)
            if path.name.endswith(".weights.json"):
                for name in read_index(copy):
                    _copy(path.with_name(name), copy.with_name(name))
            yield copy
        except (ValueError, OSError) as error:
            # The error is of the file, and not of its copy.
            text = str(error).replace(str(copy.parent), str(path.parent))
            if text == str(error):
                raise
            raise ValueError(text) from error


def _copy(path: Any, copy: Path) -> None:
    fs, name = path.fs, path.path
    before = _about(fs, name)
    size = before.get("size")
    if size is None:
        fs.get_file(name, str(copy))
    else:
        _copy_ranges(fs, name, copy, size)
    if _about(fs, name) != before:
        raise ValueError(
            "Checkpoints must not change while they are read. Received: "
            f"{path}, which did"
        )


def _about(fs: Any, name: str) -> dict[str, Any]:
    """What is known of a file: size, time, ETag."""
    fs.invalidate_cache()
    found: dict[str, Any] = fs.info(name)
    return found


def _copy_ranges(fs: Any, name: str, copy: Path, size: int) -> None:
    descriptor = system.open_to_write(copy)

    def copy_from(start: int) -> int:
        end = min(start + _RANGE, size)
        data = memoryview(fs.cat_file(name, start=start, end=end))
        done = 0
        while done < len(data):
            rest = data[done:]
            done += system.write_at(descriptor, rest, start + done)
        return len(data) - (end - start)

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            missing = list(pool.map(copy_from, range(0, size, _RANGE)))
    finally:
        os.close(descriptor)
    if any(missing):
        # The server has no ranges, or the file has changed.
        fs.get_file(name, str(copy))


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Context that writes a file or folder, here or on another machine.

    See `keras_wavg.atomic.replacing`. What goes to another machine is written
    here, and copied as a whole at the end.
    """
    if not is_remote(path):
        with atomic.replacing(path, overwrite=overwrite) as written:
            yield written
        return
    with folder_for(path) as folder:
        yield folder / path.name
        _upload(folder, path.parent, path.name, overwrite=overwrite)


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[Path]:
    """Context with a new folder of this machine, for what goes to a path."""
    if not is_remote(path):
        with atomic.folder_beside(path) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="keras_wavg-") as name:
        yield Path(name)


def _upload(folder: Path, target: Path, last: str, *, overwrite: bool) -> None:
    """Copy all files of a folder, that of the name `last` at the end.

    So an index never names shards that are not there.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.name == last, path.name == METADATA))
    places = [target / file.relative_to(folder).as_posix() for file in files]
    for place in places:
        if not overwrite and place.exists():
            raise FileExistsError(
                "`output` must not exist, unless `overwrite=True`. Received: "
                f"output={str(place)!r}"
            )
    for file, place in zip(files, places, strict=True):
        remote: Any = place
        remote.fs.put_file(str(file), remote.path)
