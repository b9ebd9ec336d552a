"""The names, types and shapes of the arrays of a step."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from keras_wavg.files.checkpoint import Contents
from keras_wavg.files.error_text import brief
from keras_wavg.files.hdf5.datatypes import ITEM_SIZES
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.orbax.file_names import TREE
from keras_wavg.files.orbax.store import Refuse, Store

_MAX_JSON = 1 << 28
_PART_OF_TOP = {
    "trainable_variables": "weights",
    "non_trainable_variables": "weights",
    "optimizer_variables": "optimizer",
    "metrics_variables": "metrics",
}
_ARRAY_TYPES = {"jax.Array", "np.ndarray", "scalar"}
_EMPTY_TYPES = {"Dict", "List", "None", "Tuple", "NamedTuple"}


class Entry(NamedTuple):
    """The name of an array in the store, and its part of the checkpoint.

    Args:
        name: String, the name in the store.
        part: String, one of `keras_wavg.files.checkpoint.PARTS`.
    """

    name: str
    part: str


@dataclass(frozen=True)
class Layout(Contents):
    """The contents of a step. The steps of one run share an instance.

    The path of a weight is Keras' `variable.path`.

    Args:
        groups: See `Structure`.
        arrays: See `Structure`.
        entries: Dict from the path of each array to its `Entry`.
        array_metadata: Dict from the path of each array to its metadata in
            `tensorstore`.
        tree: Dict, the JSON of the file `TREE`.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    array_metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    tree: Mapping[str, Any] = field(default_factory=dict)

    def part_of(self, path: str) -> str:
        """See `Contents`."""
        return self.entries[path].part

    @property
    def step_count_paths(self) -> Sequence[str]:
        """See `Contents`."""
        counts = [p for p in self.arrays if p.endswith("/iteration")]
        # An optimizer that wraps another one to scale the loss does not count.
        return [
            path
            for path in counts
            if self.part_of(path) == "optimizer"
            and f"{path.rpartition('/')[0]}/dynamic_scale" not in self.arrays
        ]


def read_json(path: Path, refuse: Refuse) -> dict[str, Any]:
    """Read a JSON file of a checkpoint."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_JSON))
    except FileNotFoundError:
        refuse(f"it has no {path.name}", "")
    except (ValueError, RecursionError) as error:
        refuse(f"{path.name} is not JSON ({brief(str(error))})", "")
    if not isinstance(content, dict):
        refuse(f"{path.name} is not a dictionary", "")
    return content


def read_entries(tree: Mapping[str, Any], refuse: Refuse) -> dict[str, Entry]:
    """The entries of all arrays, by path.

    Args:
        tree: Dict, the JSON of the file `TREE`.
        refuse: See `Store`.
    """
    entries: dict[str, Entry] = {}
    try:
        for item in tree["tree_metadata"].values():
            keys = keys_of(item)
            kind = item["value_metadata"]["value_type"]
            if kind in _EMPTY_TYPES:
                continue
            # Keys become the names of files.
            if not all(re.fullmatch(r"[^/\\\x00-\x1f]+", key) for key in keys):
                refuse("it has a name that is not valid", "/".join(keys))
            path, part = _path_and_part(keys, refuse)
            if kind not in _ARRAY_TYPES:
                refuse(f"it is of type {brief(str(kind))}", path)
            if path in entries:
                refuse("another array has the same path", path)
            entries[path] = Entry(".".join(keys), part)
    except (LookupError, TypeError, AttributeError) as error:
        refuse(f"{TREE} is not as Orbax writes it ({error!r:.99})", "")
    return entries


def keys_of(item: Mapping[str, Any]) -> list[str]:
    """The keys of the path to an array, from its item in the tree."""
    return [str(key["key"]) for key in item["key_metadata"]]


def read_layout(
    tree: Mapping[str, Any],
    entries: dict[str, Entry],
    store: Store,
    refuse: Refuse,
) -> Layout:
    """Read the types and shapes of all arrays.

    Args:
        tree: See `Layout`.
        entries: See `Layout`.
        store: A `Store`.
        refuse: See `Store`.
    """
    layout = Layout(groups={"": {}}, entries=entries, tree=tree)
    for path, entry in entries.items():
        array = store.open(entry.name)
        dtype, chunks = array.dtype.name, array.chunk_layout.write_chunk.shape
        if dtype not in ITEM_SIZES:
            refuse(f"it is of type {brief(dtype)}", path)
        layout.arrays[path] = Array(
            dtype, tuple(array.shape), chunks=tuple(chunks or ())
        )
        spec = array.spec(retain_context=False).to_json()
        layout.array_metadata[path] = spec["metadata"]
    return layout


def check_all_chunks(layout: Layout, store: Store, refuse: Refuse) -> None:
    """Check that each chunk of each array is in the store.

    `tensorstore` would read zeros in place of a missing chunk.
    """
    counts = store.chunk_counts()
    for path, entry in layout.entries.items():
        array, found = layout.arrays[path], counts.get(entry.name, 0)
        expected = _chunk_count(array.shape, array.chunks or ())
        if found != expected:
            refuse(f"it has {found} of {expected} chunks", path)


def _path_and_part(keys: Sequence[str], refuse: Refuse) -> tuple[str, str]:
    """The path of an array, and its part of the checkpoint."""
    top, *rest = keys
    part = _PART_OF_TOP.get(top)
    if part is None or not rest:
        refuse("it is not a variable of a Keras model", "/".join(keys))
    if part != "weights":
        return "/".join(keys), part
    # The state of an average is saved as a layer of the model.
    if rest[0].startswith("~wavg_"):
        part = "average"
    # The number differs between models of one architecture.
    if re.fullmatch(r"seed_generator(_\d+)?", rest[-2] if rest[1:] else ""):
        part = "random state"
    return "/".join(rest), part


def _chunk_count(shape: Sequence[int], chunks: Sequence[int]) -> int:
    sizes = zip(shape, chunks, strict=True)
    return math.prod(-(-size // max(step, 1)) for size, step in sizes)
