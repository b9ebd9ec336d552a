"""Checkpoints on other machines, by URL.

`universal_pathlib` gives URLs the methods of `pathlib.Path`, using `fsspec`.
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
from keras_wavg.files.error_text import brief
from keras_wavg.files.orbax.file_names import METADATA
from keras_wavg.files.shards import read_index

AnyPath = str | os.PathLike[str]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# Large ranges, several at a time, hide the latency of the network.
_RANGE, _MAX_THREADS = 32 << 20, 4


def as_path(filepath: AnyPath) -> Path:
    """Convert a path or a URL to a `pathlib.Path` or `upath.UPath`.

    Raises:
        ImportError: If `universal_pathlib` is needed and not installed.
    """
    if is_remote(filepath):
        return filepath  # type: ignore[return-value]
    if not isinstance(filepath, str) or not _URL.match(filepath):
        return Path(filepath)
    try:
        from upath import UPath  # noqa: PLC0415 - slow, and rarely needed
    except ImportError as error:
        raise ImportError(
            "URLs require `universal_pathlib`. Install it with `pip install "
            '"keras-wavg[remote]"`, and the package for this type of URL, such '
            f"as `s3fs` or `gcsfs`. Received: {filepath!r}"
        ) from error
    path: Path = UPath(filepath)
    return path


def is_remote(path: AnyPath) -> bool:
    """Return whether a path is a `upath.UPath`."""
    return hasattr(path, "fs")


@contextlib.contextmanager
def network_errors_as_os_errors(path: AnyPath) -> Iterator[None]:
    """Context that raises every network error as an `OSError`.

    Args:
        path: The path that is read. Nothing changes if it is local.
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        # The packages for URLs have no base class of errors in common.
        text = brief(" ".join(str(error).split()))
        raise OSError(f"{path} cannot be reached: {text}") from error


def target_of(path: Path) -> Path:
    """The path after following links, if it is local."""
    return path if is_remote(path) else atomic.target_of(path)


@contextlib.contextmanager
def local_copy(path: Any) -> Iterator[Path]:
    """Context with a local copy of a remote checkpoint.

    Args:
        path: The remote path of a file or directory. The shards of an index are
            copied too.

    Yields:
        `pathlib.Path` of the copy.

    Raises:
        ValueError: If a file changes while it is copied.
        OSError: If a file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="keras_wavg-") as directory:
        copy = Path(directory, path.name)
        try:
            if path.is_dir():
                for file in path.rglob("*"):
                    if not file.is_dir():
                        target = copy / file.relative_to(path).as_posix()
                        target.parent.mkdir(parents=True, exist_ok=True)
                        _copy_file(file, target)
            else:
                _copy_file(path, copy)
            if path.name.endswith(".weights.json"):
                for name in read_index(copy):
                    _copy_file(path.with_name(name), copy.with_name(name))
            yield copy
        except (ValueError, OSError) as error:
            # Errors must name the remote path, not the copy.
            text = str(error).replace(str(copy.parent), str(path.parent))
            if text == str(error):
                raise
            raise ValueError(text) from error


def _copy_file(path: Any, copy: Path) -> None:
    fs, name = path.fs, path.path
    before = _file_info(fs, name)
    size = before.get("size")
    if size is None:
        fs.get_file(name, str(copy))
    else:
        _copy_ranges(fs, name, copy, size)
    if _file_info(fs, name) != before:
        raise ValueError(
            "A checkpoint must not change while it is read. Received: "
            f"{path}, which did"
        )


def _file_info(fs: Any, name: str) -> dict[str, Any]:
    """Fetch the size, time and ETag of a file."""
    fs.invalidate_cache()
    info: dict[str, Any] = fs.info(name)
    return info


def _copy_ranges(fs: Any, name: str, copy: Path, size: int) -> None:
    descriptor = system.open_to_write(copy)

    def copy_range(start: int) -> bool:
        end = min(start + _RANGE, size)
        data = fs.cat_file(name, start=start, end=end)
        system.write_all(descriptor, memoryview(data), start)
        return len(data) == end - start

    try:
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            is_complete = all([*pool.map(copy_range, range(0, size, _RANGE))])
    finally:
        os.close(descriptor)
    if not is_complete:
        # The server does not support ranges, or the file has changed.
        fs.get_file(name, str(copy))


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Context that writes a local or remote file or directory.

    See `keras_wavg.atomic.replacing`. A remote file is written locally, and
    uploaded at the end of the context.
    """
    if not is_remote(path):
        with atomic.replacing(path, overwrite=overwrite) as temporary:
            yield temporary
        return
    with temporary_directory_for(path) as directory:
        yield directory / path.name
        _upload(directory, path, overwrite=overwrite)


@contextlib.contextmanager
def temporary_directory_for(path: Path) -> Iterator[Path]:
    """Context with a local directory, on the disk of the path if it is local.

    Args:
        path: The path to which its contents will be moved or uploaded.
    """
    if not is_remote(path):
        with atomic.temporary_directory_beside(path) as directory:
            yield directory
        return
    with tempfile.TemporaryDirectory(prefix="keras_wavg-") as name:
        yield Path(name)


def _upload(directory: Path, path: Path, *, overwrite: bool) -> None:
    """Upload the contents of a directory, the file of the path last.

    So an index never names a missing shard.
    """
    files = [file for file in directory.rglob("*") if file.is_file()]
    files.sort(key=lambda file: (file.name == path.name, file.name == METADATA))
    targets: list[Any] = [
        path.parent / file.relative_to(directory).as_posix() for file in files
    ]
    for target in targets:
        if not overwrite and target.exists():
            raise FileExistsError(
                "`output_filepath` must not exist, unless `overwrite=True`. "
                f"Received: output_filepath={str(target)!r}"
            )
    for file, target in zip(files, targets, strict=True):
        target.fs.put_file(str(file), target.path)
