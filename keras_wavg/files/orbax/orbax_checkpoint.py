"""Opens Orbax checkpoints."""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.error_text import brief, printable
from keras_wavg.files.orbax.file_names import CONFIG, METADATA, PYTREE, TREE
from keras_wavg.files.orbax.layout import (
    Layout,
    check_all_chunks,
    read_entries,
    read_json,
    read_layout,
)
from keras_wavg.files.orbax.store import Refuse, Store
from keras_wavg.files.remote import is_remote
from keras_wavg.files.streaming import Block

_Identity = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class OrbaxCheckpoint(Checkpoint):
    """The saved state of a model in the directory of a step.

    Args:
        contents: A `Layout`.
        store: A `Store`.
        identity: Tuple of the names, sizes and times of its files.
        step_metadata: Dict, the JSON of the file `METADATA`.
    """

    contents: Layout
    store: Store = field(kw_only=True)
    identity: _Identity = field(kw_only=True)
    step_metadata: Mapping[str, Any] = field(kw_only=True)

    @property
    def attributes(self) -> Mapping[str, str]:
        """See `Checkpoint`."""
        custom = self.step_metadata.get("custom_metadata")
        pairs = custom.items() if isinstance(custom, dict) else ()
        return {name: value for name, value in pairs if isinstance(value, str)}

    def read_into(self, view: memoryview, block: Block) -> None:
        """See `Checkpoint`."""
        name = self.contents.entries[block.path].name
        metadata = self.contents.array_metadata[block.path]
        self.store.read_into(view, name, metadata, block.slices)

    def read(self, path: str) -> Any:
        """Read a whole array."""
        name = self.contents.entries[path].name
        return self.store.read(name, self.contents.array_metadata[path])

    def refuse(self, why: str, inside: str) -> NoReturn:
        """See `Checkpoint`."""
        refuse(self.path, why, inside)

    def read_config(self) -> str | None:
        """See `Checkpoint`."""
        strings = self.path / CONFIG / "_strings.json"
        if not strings.exists():
            return None
        config = read_json(strings, partial(refuse, self.path)).get("config")
        if not isinstance(config, str):
            self.refuse("it has no config of a model", CONFIG)
        return config

    def is_at(self, path: Path) -> bool:
        """See `Checkpoint`."""
        directories = self.location, self.location.parent
        if is_remote(self.location) or is_remote(path):
            return str(path) in map(str, directories)
        return path.exists() and any(map(path.samefile, directories))

    def check_unchanged(self) -> None:
        """See `Checkpoint`."""
        if _identity(self.path) != self.identity:
            self.refuse("it was changed while it was read", "")


class OrbaxOpener:
    """Opens Orbax checkpoints, and reads equal layouts only once."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, Layout] = {}

    def open(self, step: Path) -> OrbaxCheckpoint:
        """Open a checkpoint.

        Args:
            step: `pathlib.Path` of the directory of a step.

        Raises:
            ValueError: If Orbax does not write such a directory.
            OSError: If it cannot be read.
            ImportError: If `tensorstore` is not installed.
        """
        identity = _identity(step)
        refuse_step = partial(refuse, step)
        step_metadata = read_json(step / METADATA, refuse_step)
        if not step_metadata.get("commit_timestamp_nsecs"):
            refuse_step("writing it has not finished", "")
        tree = read_json(step / PYTREE / TREE, refuse_step)
        driver = "zarr3" if tree.get("use_zarr3") else "zarr"
        is_packed = bool(tree.get("use_ocdbt"))
        store = Store(step / PYTREE, driver, refuse_step, is_packed=is_packed)
        layout = self._layout(tree, store, refuse_step)
        if tree.get("store_array_data_equal_to_fill_value"):
            check_all_chunks(layout, store, refuse_step)
        return OrbaxCheckpoint(
            step,
            layout,
            store=store,
            identity=identity,
            step_metadata=step_metadata,
        )

    def _layout(
        self, tree: Mapping[str, Any], store: Store, refuse_step: Refuse
    ) -> Layout:
        entries = read_entries(tree, refuse_step)
        stored = store.metadata_files([e.name for e in entries.values()])
        digest = hashlib.sha256(repr((tree, stored)).encode()).digest()
        if digest not in self._layouts:
            layout = read_layout(tree, entries, store, refuse_step)
            self._layouts[digest] = layout
        return self._layouts[digest]


def metrics_of_steps(
    steps: Mapping[int, Path], monitor: str
) -> dict[int, float]:
    """Read the values of a metric that Orbax saved.

    Args:
        steps: Dict from steps to their directories.
        monitor: String, the name of the metric.

    Returns:
        Dict from steps to floats, without the steps that lack the metric.
    """
    found = {}
    for step, directory in steps.items():
        content = read_json(directory / METADATA, partial(refuse, directory))
        metrics = content.get("metrics")
        value = metrics.get(monitor) if isinstance(metrics, dict) else None
        if isinstance(value, (int, float)):
            found[step] = float(value)
    return found


def refuse(path: Path, why: str, inside: str) -> NoReturn:
    """Raise the error that names a checkpoint, and an array in it."""
    where = f", at {brief(inside)}" if inside else ""
    raise ValueError(
        "An Orbax checkpoint must be a complete directory that Keras wrote. "
        f"Received: {printable(str(path))}{where}: {why}."
    )


def _identity(directory: Path) -> _Identity:
    """The names, sizes and times of all files."""
    files = []
    for path in directory.rglob("*"):
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            name = path.relative_to(directory).as_posix()
            files.append((name, status.st_size, status.st_mtime_ns))
    return tuple(sorted(files))
