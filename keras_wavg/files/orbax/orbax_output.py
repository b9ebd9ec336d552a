"""Writes Orbax checkpoints."""

import base64
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, Self

from keras_wavg.files.checkpoint import PROVENANCE
from keras_wavg.files.error_text import brief, printable
from keras_wavg.files.orbax.file_names import METADATA, PYTREE, TREE
from keras_wavg.files.orbax.layout import keys_of
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint
from keras_wavg.files.orbax.store import Store
from keras_wavg.files.streaming import Block

_SHARDINGS = "_sharding"
_CHUNKS = "array_metadatas"
_PACKED_ARRAYS = {"d", "manifest.ocdbt"}


class OrbaxOutput:
    """Context that writes a step.

    Each chunk is written to its own file, which Orbax reads too. So several
    processes can write, and equal arrays are equal bytes.

    Args:
        path: `pathlib.Path` of the directory to write, in an empty directory.
        source: The `OrbaxCheckpoint` from which everything but the values of
            the arrays is copied.
        paths: Collection of the paths of the arrays to write.
    """

    def __init__(
        self, path: Path, source: OrbaxCheckpoint, paths: Collection[str]
    ) -> None:
        self._path = path
        self._source = source
        self._entries = {p: source.contents.entries[p] for p in paths}
        self._store = Store(
            path / PYTREE, source.store.driver, self._refuse, is_packed=False
        )

    def __enter__(self) -> Self:
        metadata = self._source.contents.array_metadata
        for path, entry in self._entries.items():
            self._store.create(entry.name, metadata[path])
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: memoryview, block: Block) -> None:
        """Write the bytes of a block."""
        name = self._entries[block.path].name
        metadata = self._source.contents.array_metadata[block.path]
        self._store.write(data, name, metadata, block.slices)

    def finish(self, provenance: str) -> None:
        """Write everything but the arrays.

        Args:
            provenance: String, JSON to save in the checkpoint.
        """
        old = self._source.path
        for file in old.rglob("*"):
            name = file.relative_to(old)
            if name.parts[0] != PYTREE and not file.is_dir():
                target = self._path / name.as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        self._write_tree(old / PYTREE, self._path / PYTREE)
        now = time.time_ns()
        step_metadata = {
            **self._source.step_metadata,
            "metrics": {},  # were measured before averaging
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {PROVENANCE: provenance},
        }
        _write_json(self._path / METADATA, step_metadata)

    def _write_tree(self, old: Path, new: Path) -> None:
        names = {entry.name for entry in self._entries.values()}
        tree = self._source.contents.tree
        items = {
            key: item
            for key, item in tree["tree_metadata"].items()
            if ".".join(keys_of(item)) in names
        }
        changes = {"use_ocdbt": False, "tree_metadata": items}
        _write_json(new / TREE, {**tree, **changes})
        for file in old.iterdir():
            if file.name == _SHARDINGS:
                _write_json(new / file.name, _shardings(file, names))
            elif file.name == _CHUNKS:
                (new / _CHUNKS).mkdir()
                for part in file.iterdir():
                    _write_json(new / _CHUNKS / part.name, _chunks(part, names))
            elif file.is_file() and file.name not in {TREE, *_PACKED_ARRAYS}:
                (new / file.name).write_bytes(file.read_bytes())

    def _refuse(self, why: str, inside: str) -> NoReturn:
        raise OSError(
            "The output could not be written. Received: "
            f"{printable(str(self._path))}, at {brief(inside)}: {why}"
        )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _shardings(file: Path, names: Collection[str]) -> dict[str, Any]:
    """The shardings of arrays over devices, by their names in base64."""
    keys = {base64.b64encode(name.encode()).decode() for name in names}
    shardings = json.loads(file.read_bytes())
    return {key: shardings[key] for key in shardings if key in keys}


def _chunks(file: Path, names: Collection[str]) -> dict[str, Any]:
    """The chunks of arrays, as one process recorded them."""
    content: dict[str, Any] = json.loads(file.read_bytes())
    content["array_metadatas"] = [
        item
        for item in content["array_metadatas"]
        if item["array_metadata"]["param_name"] in names
    ]
    return content
