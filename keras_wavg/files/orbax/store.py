"""The arrays in the folder of a step, by tensorstore."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy

from keras_wavg.files.remote import is_remote
from keras_wavg.files.source import brief
from keras_wavg.files.streaming import Box

Refuse = Callable[[str, str], NoReturn]

# What tensorstore raises, whatever went wrong.
_ERRORS = (ValueError, OSError, RuntimeError, LookupError, NotImplementedError)
# Chunks are read once. What is kept is where they are.
_CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "cache_pool#places": {"total_bytes_limit": 1 << 26},
}
_METADATA_KEYS = {"zarr3": "zarr.json", "zarr": ".zarray"}


def tensorstore() -> Any:
    """The module that reads and writes arrays in chunks.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module("tensorstore")
    except ImportError as error:
        raise ImportError(
            "Orbax checkpoints need `tensorstore`. Install it: "
            'pip install "keras-wavg[orbax]"'
        ) from error


def base_of(folder: Any) -> dict[str, Any] | None:
    """What tensorstore opens for a remote folder, or `None` if it cannot."""
    if not is_remote(folder):
        return None
    driver = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}.get(folder.protocol)
    if driver is None:
        return None
    bucket, _, path = folder.path.partition("/")
    base = {"driver": driver, "bucket": bucket, "path": f"{path}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and driver == "s3":
        # Its region is not asked for, as that of Amazon's buckets is.
        region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        base |= {"endpoint": endpoint, "aws_region": region}
    return base


class Store:
    """The arrays of one step.

    Args:
        folder: `pathlib.Path` of the folder with the arrays.
        driver: String, the format of an array: `"zarr3"` or `"zarr"`.
        refuse: Function of what is the matter and of the path of an array. It
            raises the error that names the checkpoint.
        is_packed: Boolean, whether all chunks are in a few files (OCDBT), and
            not each in a file of its own.
    """

    def __init__(
        self, folder: Path, driver: str, refuse: Refuse, *, is_packed: bool
    ) -> None:
        self._tensorstore = tensorstore()
        self._context = self._tensorstore.Context(_CONTEXT)
        self.driver = driver
        self._refuse = refuse
        self._base = base_of(folder) or {"driver": "file", "path": f"{folder}/"}
        if is_packed:
            self._base = {
                "driver": "ocdbt",
                "base": self._base,
                "cache_pool": "cache_pool#places",
            }

    def counts(self) -> dict[str, int]:
        """How many chunks there are of each array, by its name."""
        with self._refusing(""):
            keys = self._keys().list().result()
        found: dict[str, int] = {}
        for key in keys:
            name, _, rest = key.decode(errors="replace").partition("/")
            is_chunk = rest != _METADATA_KEYS[self.driver]
            found[name] = found.get(name, 0) + is_chunk
        return found

    def descriptions(self, names: Sequence[str]) -> list[bytes]:
        """What the store says of arrays, as it is stored."""
        keys = self._keys()
        file = _METADATA_KEYS[self.driver]
        with self._refusing(""):
            reads = [keys.read(f"{name}/{file}") for name in names]
            return [bytes(read.result().value) for read in reads]

    def open(self, name: str, metadata: Mapping[str, Any] | None = None) -> Any:
        """An array, by tensorstore.

        Args:
            name: String, the name of the array.
            metadata: Dict that tensorstore has of it, to be believed, or `None`
                to read it.
        """
        spec: dict[str, Any] = self._spec(name)
        if metadata is not None:
            spec |= {"metadata": metadata, "assume_metadata": True}
        with self._refusing(name):
            return self._opened(spec, open=True)

    def create(self, name: str, metadata: Mapping[str, Any]) -> Any:
        """A new array, to be written."""
        spec = {
            **self._spec(name),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        with self._refusing(name):
            return self._opened(spec, create=True, open=True)

    def read(self, name: str, metadata: Mapping[str, Any]) -> Any:
        """The numbers of an array."""
        array = self.open(name, metadata)
        with self._refusing(name):
            return array.read().result()

    def read_into(
        self, view: memoryview, name: str, metadata: Mapping[str, Any], box: Box
    ) -> None:
        """Fill a view with the numbers of a part of an array."""
        part, values = self._part(view, name, metadata, box)
        with self._refusing(name):
            target = self._tensorstore.array(values, write=True, copy=False)
            target.write(part).result()

    def write(
        self, data: memoryview, name: str, metadata: Mapping[str, Any], box: Box
    ) -> None:
        """Write the numbers of a part of an array."""
        part, values = self._part(data, name, metadata, box)
        with self._refusing(name):
            # It is waited for, so the buffer stays as it is until then.
            part.write(
                values, can_reference_source_data_indefinitely=True
            ).result()

    def _part(
        self, data: memoryview, name: str, metadata: Mapping[str, Any], box: Box
    ) -> tuple[Any, Any]:
        """A part of an array, and bytes as an array of its kind and shape."""
        part = self.open(name, metadata)[box]
        values = numpy.frombuffer(data, part.dtype.numpy_dtype)
        return part, values.reshape(part.shape)

    def _spec(self, name: str) -> dict[str, Any]:
        kvstore = {**self._base, "path": f"{self._path}{name}/"}
        return {"driver": self.driver, "kvstore": kvstore}

    @property
    def _path(self) -> str:
        return "" if self._base["driver"] == "ocdbt" else self._base["path"]

    def _opened(self, spec: Mapping[str, Any], **how: bool) -> Any:
        return self._tensorstore.open(
            spec, context=self._context, **how
        ).result()

    def _keys(self) -> Any:
        return self._tensorstore.KvStore.open(
            self._base, context=self._context
        ).result()

    @contextlib.contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            self._refuse(f"tensorstore: {brief(str(error))}", name)
