"""Reads and writes the arrays of a step, using `tensorstore`."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy

from keras_wavg.files.error_text import brief
from keras_wavg.files.remote import is_remote
from keras_wavg.files.streaming import Slices

Refuse = Callable[[str, str], NoReturn]
"""Function of the reason and the path of an array. It raises the error that
names the checkpoint."""

# The errors that tensorstore raises.
_ERRORS = (ValueError, OSError, RuntimeError, LookupError, NotImplementedError)
# Chunks are read once and not cached. Their locations are cached.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#locations": {"total_bytes_limit": 1 << 26},
}
_METADATA_FILES = {"zarr3": "zarr.json", "zarr": ".zarray"}


def import_tensorstore() -> Any:
    """Import `tensorstore`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("tensorstore")
    except ImportError as error:
        raise ImportError(
            "Orbax checkpoints require `tensorstore`. Install it with "
            '`pip install "keras-wavg[orbax]"`.'
        ) from error


def remote_kvstore(directory: Any) -> dict[str, Any] | None:
    """The key-value store with which `tensorstore` opens a remote directory.

    Returns:
        Dict, or `None` if it is local or `tensorstore` cannot open it.
    """
    if not is_remote(directory):
        return None
    driver = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}.get(directory.protocol)
    if driver is None:
        return None
    bucket, _, path = directory.path.partition("/")
    kvstore = {"driver": driver, "bucket": bucket, "path": f"{path}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and driver == "s3":
        # Unlike Amazon's, such a server may not report the region of a bucket.
        region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        kvstore |= {"endpoint": endpoint, "aws_region": region}
    return kvstore


class Store:
    """The arrays of a step.

    Args:
        directory: `pathlib.Path` of the directory with the arrays.
        driver: String, the format of an array, `"zarr3"` or `"zarr"`.
        refuse: A `Refuse`.
        is_packed: Boolean, whether all chunks are in a few files (OCDBT), and
            not each chunk in its own file.
    """

    def __init__(
        self, directory: Path, driver: str, refuse: Refuse, *, is_packed: bool
    ) -> None:
        self._tensorstore = import_tensorstore()
        self._context = self._tensorstore.Context(_CONTEXT)
        self.driver = driver
        self._refuse = refuse
        local = {"driver": "file", "path": f"{directory}/"}
        self._kvstore = remote_kvstore(directory) or local
        if is_packed:
            self._kvstore = {
                "driver": "ocdbt",
                "base": self._kvstore,
                "path": "",
                "cache_pool": "cache_pool#locations",
            }

    def chunk_counts(self) -> dict[str, int]:
        """The number of stored chunks of each array, by its name."""
        with self._errors_refused(""):
            keys = self._open_kvstore().list().result()
        counts: dict[str, int] = {}
        for key in keys:
            name, _, rest = key.decode(errors="replace").partition("/")
            is_chunk = rest != _METADATA_FILES[self.driver]
            counts[name] = counts.get(name, 0) + is_chunk
        return counts

    def metadata_files(self, names: Sequence[str]) -> list[bytes]:
        """Read the metadata files of arrays."""
        kvstore = self._open_kvstore()
        file = _METADATA_FILES[self.driver]
        with self._errors_refused(""):
            reads = [kvstore.read(f"{name}/{file}") for name in names]
            return [bytes(read.result().value) for read in reads]

    def open(self, name: str, metadata: Mapping[str, Any] | None = None) -> Any:
        """Open an array.

        Args:
            name: String, the name of the array.
            metadata: Dict, its metadata in `tensorstore`, or `None` to read it.
                Defaults to `None`.
        """
        spec = self._spec(name)
        if metadata is not None:
            spec |= {"metadata": metadata, "assume_metadata": True}
        with self._errors_refused(name):
            return self._open_array(spec, open=True)

    def create(self, name: str, metadata: Mapping[str, Any]) -> Any:
        """Create an array."""
        spec = {
            **self._spec(name),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        with self._errors_refused(name):
            return self._open_array(spec, create=True, open=True)

    def read(self, name: str, metadata: Mapping[str, Any]) -> Any:
        """Read a whole array."""
        array = self.open(name, metadata)
        with self._errors_refused(name):
            return array.read().result()

    def read_into(
        self,
        view: memoryview,
        name: str,
        metadata: Mapping[str, Any],
        slices: Slices,
    ) -> None:
        """Fill a view with the bytes of a part of an array."""
        part, values = self._part(view, name, metadata, slices)
        with self._errors_refused(name):
            target = self._tensorstore.array(values, write=True, copy=False)
            target.write(part).result()

    def write(
        self,
        data: memoryview,
        name: str,
        metadata: Mapping[str, Any],
        slices: Slices,
    ) -> None:
        """Write the bytes of a part of an array."""
        part, values = self._part(data, name, metadata, slices)
        with self._errors_refused(name):
            # No copy is needed, as this waits until the write is done.
            part.write(
                values, can_reference_source_data_indefinitely=True
            ).result()

    def _part(
        self,
        data: memoryview,
        name: str,
        metadata: Mapping[str, Any],
        slices: Slices,
    ) -> tuple[Any, Any]:
        """A part of an array, and bytes as an array of its type and shape."""
        part = self.open(name, metadata)[slices]
        values = numpy.frombuffer(data, part.dtype.numpy_dtype)
        return part, values.reshape(part.shape)

    def _spec(self, name: str) -> dict[str, Any]:
        path = f"{self._kvstore['path']}{name}/"
        return {
            "driver": self.driver,
            "kvstore": self._kvstore | {"path": path},
        }

    def _open_array(self, spec: Mapping[str, Any], **options: bool) -> Any:
        return self._tensorstore.open(
            spec, context=self._context, **options
        ).result()

    def _open_kvstore(self) -> Any:
        return self._tensorstore.KvStore.open(
            self._kvstore, context=self._context
        ).result()

    @contextlib.contextmanager
    def _errors_refused(self, name: str) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            self._refuse(f"tensorstore: {brief(str(error))}", name)
