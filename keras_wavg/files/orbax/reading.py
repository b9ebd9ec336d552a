"""Opens the checkpoints of steps."""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.orbax.layout import (
    Entry,
    Layout,
    read_entries,
    read_json,
    read_layout,
    require_all_chunks,
)
from keras_wavg.files.orbax.names import CONFIG, METADATA, PYTREE, TREE
from keras_wavg.files.orbax.steps import step_folder
from keras_wavg.files.orbax.store import Refuse, Store
from keras_wavg.files.remote import is_remote
from keras_wavg.files.source import brief, printable
from keras_wavg.files.streaming import Block

_Identities = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class OrbaxCheckpoint(Checkpoint):
    """The saved state of a model, in the folder of a step.

    Args:
        contents: A `Layout`.
        store: A `Store`.
        identities: Set of the names, sizes and times of its files.
        kept: Dict of strings that were written with it.
    """

    contents: Layout
    store: Store = field(kw_only=True)
    identities: _Identities = field(kw_only=True)
    kept: Mapping[str, str] = field(kw_only=True)

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of its files, wherever the folder is."""
        return sorted(self.identities)

    @property
    def attributes(self) -> Mapping[str, str]:
        """See `Checkpoint`."""
        return self.kept

    def read_into(self, view: memoryview, block: Block) -> None:
        """See `Checkpoint`."""
        name = self.contents.entries[block.path].name
        metadata = self.contents.metadata[block.path]
        self.store.read_into(view, name, metadata, block.box)

    def read(self, path: str) -> Any:
        """The whole of an array."""
        name = self.contents.entries[path].name
        return self.store.read(name, self.contents.metadata[path])

    def refuse(self, why: str, at: str) -> NoReturn:
        """See `Checkpoint`."""
        refuse(self.path, why, at)

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
        places = self.given, self.given.parent
        if is_remote(self.given) or is_remote(path):
            return str(path) in map(str, places)
        return path.exists() and any(map(path.samefile, places))

    def check_unchanged(self) -> None:
        """See `Checkpoint`."""
        if _identities(self.path) != self.identities:
            self.refuse("it was changed while it was read", "")


class OrbaxOpener:
    """Opens checkpoints of Orbax, and reads the same layout only once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Layout] = {}

    def open(self, path: Path) -> OrbaxCheckpoint:
        """A checkpoint.

        Args:
            path: `pathlib.Path` of the folder of a step, or of a root, whose
                latest step it is.

        Raises:
            ValueError: If it is not as Orbax writes it.
            OSError: If it cannot be read.
            ImportError: If `tensorstore` is not installed.
        """
        folder = step_folder(path)
        identities = _identities(folder)
        refused = partial(refuse, folder)
        about = read_json(folder / METADATA, refused)
        if not about.get("commit_timestamp_nsecs"):
            refused("it has not been written to its end", "")
        tree = read_json(folder / PYTREE / TREE, refused)
        driver = "zarr3" if tree.get("use_zarr3") else "zarr"
        is_packed = bool(tree.get("use_ocdbt"))
        store = Store(folder / PYTREE, driver, refused, is_packed=is_packed)
        layout = self._layout(read_entries(tree, refused), store, refused)
        if tree.get("store_array_data_equal_to_fill_value"):
            require_all_chunks(layout, store, refused)
        return OrbaxCheckpoint(
            folder,
            layout,
            store=store,
            identities=identities,
            kept=_strings(about.get("custom_metadata")),
        )

    def _layout(
        self, entries: dict[str, Entry], store: Store, refused: Refuse
    ) -> Layout:
        stored = store.descriptions([entry.name for entry in entries.values()])
        both = repr((entries, stored)).encode()
        digest = hashlib.sha256(both).digest()
        if digest not in self._known:
            self._known[digest] = read_layout(entries, store, refused)
        return self._known[digest]


def metrics_of_steps(
    steps: Mapping[int, Path], metric: str
) -> dict[int, float]:
    """What Orbax has of a metric, by step.

    Args:
        steps: Dict from steps to their folders.
        metric: String, the name of the metric.
    """
    found = {}
    for step, folder in steps.items():
        about = read_json(folder / METADATA, partial(refuse, folder))
        metrics = about.get("metrics")
        value = metrics.get(metric) if isinstance(metrics, dict) else None
        if isinstance(value, (int, float)):
            found[step] = float(value)
    return found


def refuse(path: Path, why: str, at: str) -> NoReturn:
    """Raise the error that names a checkpoint, and an array in it."""
    place = f", at {brief(at)}" if at else ""
    raise ValueError(
        "Checkpoints of Orbax must be whole folders as Keras writes them. "
        f"Received: {printable(str(path))}{place}: {why}."
    )


def _strings(kept: Any) -> dict[str, str]:
    if not isinstance(kept, dict):
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, str)}


def _identities(folder: Path) -> _Identities:
    """Names, sizes and times of all files."""
    found = set()
    for path in folder.rglob("*"):
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            name = path.relative_to(folder).as_posix()
            found.add((name, status.st_size, status.st_mtime_ns))
    return frozenset(found)
