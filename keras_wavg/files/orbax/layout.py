"""What the arrays of a step are called, and where they are."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from keras_wavg.files.checkpoint import Contents
from keras_wavg.files.hdf5.datatypes import ITEM_SIZES
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.orbax.names import TREE
from keras_wavg.files.orbax.store import Refuse, Store
from keras_wavg.files.source import brief

_MAX_JSON = 1 << 28
_TOPS = {
    "trainable_variables": "weights",
    "non_trainable_variables": "weights",
    "optimizer_variables": "optimizer",
    "metrics_variables": "metrics",
}
_ARRAYS = {"jax.Array", "np.ndarray", "scalar"}
_EMPTY = {"Dict", "List", "None", "Tuple", "NamedTuple"}


class Entry(NamedTuple):
    """Where an array is, and what it is.

    Args:
        name: String, its name in the store.
        part: String, one of `keras_wavg.files.checkpoint.PARTS`.
    """

    name: str
    part: str


@dataclass(frozen=True)
class Layout(Contents):
    """The arrays of a step, as those of all steps of one run are.

    The path of a weight is Keras' `variable.path`.

    Args:
        entries: Dict from the path of each array to its `Entry`.
        metadata: Dict from the path of each array to what tensorstore has of
            it.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def part_of(self, path: str) -> str:
        """See `Contents`."""
        return self.entries[path].part

    @property
    def step_paths(self) -> Sequence[str]:
        """See `Contents`."""
        counts = [p for p in self.arrays if p.endswith("/iteration")]
        # The optimizer around another one, for the scale of losses, does not
        # count.
        return [
            path
            for path in counts
            if self.part_of(path) == "optimizer"
            and f"{path.rpartition('/')[0]}/dynamic_scale" not in self.arrays
        ]


def read_json(path: Path, refuse: Refuse) -> dict[str, Any]:
    """A file of a checkpoint that is JSON."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_JSON))
    except FileNotFoundError:
        refuse(f"it has no {path.name}", "")
    except (ValueError, RecursionError) as error:
        refuse(f"{path.name} is not JSON ({brief(str(error))})", "")
    if not isinstance(found, dict):
        refuse(f"{path.name} is not a dictionary", "")
    return found


def read_entries(tree: Mapping[str, Any], refuse: Refuse) -> dict[str, Entry]:
    """From the paths of arrays to where they are.

    Args:
        tree: Dict, the JSON of the file `TREE`.
        refuse: See `Store`.
    """
    found: dict[str, Entry] = {}
    try:
        for listed in tree["tree_metadata"].values():
            keys = keys_of(listed)
            kind = listed["value_metadata"]["value_type"]
            if kind in _EMPTY:
                continue
            # They become the names of files.
            if not all(re.fullmatch(r"[^/\\\x00-\x1f]+", key) for key in keys):
                refuse("it has a name that no variable has", "/".join(keys))
            path, part = _place(keys, refuse)
            if kind not in _ARRAYS:
                refuse(f"it is of the type {brief(str(kind))}", path)
            if path in found:
                refuse("another array has the same path", path)
            found[path] = Entry(".".join(keys), part)
    except (LookupError, TypeError, AttributeError) as error:
        refuse(f"{TREE} is not as Orbax writes it ({error!r:.99})", "")
    return found


def keys_of(listed: Any) -> list[str]:
    """The keys that lead to an array, from what the tree says of it."""
    return [str(key["key"]) for key in listed["key_metadata"]]


def read_layout(
    entries: dict[str, Entry], store: Store, refuse: Refuse
) -> Layout:
    """The layout of arrays, read from the store.

    Args:
        entries: See `Layout`.
        store: A `Store`.
        refuse: See `Store`.
    """
    layout = Layout(groups={"": {}}, entries=entries)
    for path, entry in entries.items():
        array = store.open(entry.name)
        dtype, chunks = array.dtype.name, array.chunk_layout.write_chunk.shape
        if dtype not in ITEM_SIZES:
            refuse(f"it is of the type {brief(dtype)}", path)
        layout.arrays[path] = Array(
            dtype, tuple(array.shape), chunks=tuple(chunks or ())
        )
        spec = array.spec(retain_context=False).to_json()
        layout.metadata[path] = spec["metadata"]
    return layout


def require_all_chunks(layout: Layout, store: Store, refuse: Refuse) -> None:
    """Refuse a store that has not each chunk of each array.

    Zeros would be read in its place.
    """
    counts = store.counts()
    for path, entry in layout.entries.items():
        array, found = layout.arrays[path], counts.get(entry.name, 0)
        expected = _count(array.shape, array.chunks or ())
        if found != expected:
            refuse(f"it has {found} of {expected} chunks", path)


def _place(keys: Sequence[str], refuse: Refuse) -> tuple[str, str]:
    """The path of an array, and what it is a part of."""
    top, *rest = keys
    part = _TOPS.get(top)
    if part is None or not rest:
        refuse("it is not a variable of a Keras model", "/".join(keys))
    if part != "weights":
        return "/".join(keys), part
    # The model has the state of an average as a layer.
    if rest[0].startswith("~wavg_"):
        part = "average"
    # Its number differs between models of one architecture.
    if re.fullmatch(r"seed_generator(_\d+)?", rest[-2] if rest[1:] else ""):
        part = "random state"
    return "/".join(rest), part


def _count(shape: Sequence[int], chunks: Sequence[int]) -> int:
    count = 1
    for size, step in zip(shape, chunks, strict=True):
        count *= -(-size // max(step, 1))
    return count
