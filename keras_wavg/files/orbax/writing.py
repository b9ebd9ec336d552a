"""Writes the checkpoint of a step."""

import base64
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn, Self

from keras_wavg.files.checkpoint import PROVENANCE
from keras_wavg.files.orbax.layout import keys_of
from keras_wavg.files.orbax.names import METADATA, PYTREE, TREE
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.orbax.store import Store
from keras_wavg.files.source import brief, printable
from keras_wavg.files.streaming import Block

_SHARDINGS = "_sharding"
_CHUNKS = "array_metadatas"
_OF_ARRAYS = {"d", "manifest.ocdbt"}


class OrbaxOutput:
    """A step being written.

    Each chunk is a file of its own, as Orbax reads it too: so several processes
    can write, and the same numbers are the same bytes.

    Args:
        path: `pathlib.Path` of the folder to write, in an empty one.
        like: The `OrbaxCheckpoint` that gives everything but numbers.
        paths: Collection of the paths of the arrays to write.
    """

    def __init__(
        self, path: Path, like: OrbaxCheckpoint, paths: Collection[str]
    ) -> None:
        self._path = path
        self._like = like
        layout = like.contents
        self._entries = {p: layout.entries[p] for p in paths}
        self._store = Store(
            path / PYTREE, like.store.driver, self._refuse, is_packed=False
        )

    def __enter__(self) -> Self:
        for path, entry in self._entries.items():
            self._store.create(entry.name, self._like.contents.metadata[path])
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: memoryview, block: Block) -> None:
        """Write the bytes of a block."""
        name = self._entries[block.path].name
        metadata = self._like.contents.metadata[block.path]
        self._store.write(data, name, metadata, block.box)

    def finish(self, provenance: str) -> None:
        """Write what is around the arrays.

        Args:
            provenance: JSON, to be kept in the checkpoint.
        """
        old = self._like.path
        for file in old.rglob("*"):
            name = file.relative_to(old)
            if name.parts[0] != PYTREE and not file.is_dir():
                place = self._path / name.as_posix()
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
        self._write_tree(old / PYTREE, self._path / PYTREE)
        about = json.loads((old / METADATA).read_bytes())
        now = time.time_ns()
        about |= {
            "metrics": {},  # They are of the weights before the average.
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {PROVENANCE: provenance},
        }
        (self._path / METADATA).write_text(json.dumps(about))

    def _write_tree(self, old: Path, new: Path) -> None:
        names = {entry.name for entry in self._entries.values()}
        tree = json.loads((old / TREE).read_bytes())
        tree["use_ocdbt"] = False
        tree["tree_metadata"] = {
            key: listed
            for key, listed in tree["tree_metadata"].items()
            if ".".join(keys_of(listed)) in names
        }
        (new / TREE).write_text(json.dumps(tree))
        for file in old.iterdir():
            if file.name == _SHARDINGS:
                _write_json(new / file.name, _shardings(file, names))
            elif file.name == _CHUNKS:
                (new / _CHUNKS).mkdir()
                for part in file.iterdir():
                    _write_json(new / _CHUNKS / part.name, _chunks(part, names))
            elif file.is_file() and file.name not in {TREE, *_OF_ARRAYS}:
                (new / file.name).write_bytes(file.read_bytes())

    def _refuse(self, why: str, at: str) -> NoReturn:
        raise OSError(
            "The output must be written to its end. Received: "
            f"{printable(str(self._path))}, at {brief(at)}: {why}"
        )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _shardings(file: Path, names: Collection[str]) -> dict[str, Any]:
    """How arrays were spread over devices, by their names in base64."""
    keys = {base64.b64encode(name.encode()).decode() for name in names}
    found = json.loads(file.read_bytes())
    return {key: found[key] for key in found if key in keys}


def _chunks(file: Path, names: Collection[str]) -> dict[str, Any]:
    """The chunks of arrays, as a process noted them."""
    found = json.loads(file.read_bytes())
    found["array_metadatas"] = [
        listed
        for listed in found["array_metadatas"]
        if listed["array_metadata"]["param_name"] in names
    ]
    return found
