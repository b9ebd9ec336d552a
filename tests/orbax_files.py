"""Writes checkpoints like Keras' `OrbaxCheckpoint`, without a model."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import tensorstore

Arrays = dict[str, numpy.ndarray]


def write(
    step: Path,
    arrays: Arrays,
    *,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    driver: str = "zarr3",
    packed: bool = True,
    config: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write arrays, by their paths in the tree, to the directory of a step."""
    pytree = step / "pytree"
    pytree.mkdir(parents=True)
    tree = {}
    for path, array in arrays.items():
        keys = path.split("/")
        spec = {
            "driver": driver,
            "kvstore": _kvstore(pytree, ".".join(keys), packed=packed),
            "store_data_equal_to_fill_value": True,
        }
        shape = (chunks or {}).get(path, array.shape)
        store = tensorstore.open(
            spec,
            create=True,
            dtype=tensorstore.dtype(array.dtype),
            shape=array.shape,
            chunk_layout=tensorstore.ChunkLayout(write_chunk_shape=shape),
        ).result()
        store.write(array).result()
        tree[repr(tuple(keys))] = {
            "key_metadata": [{"key": key, "key_type": 2} for key in keys],
            "value_metadata": {
                "value_type": "jax.Array",
                "skip_deserialize": False,
            },
        }
    write_json(
        pytree / "_METADATA",
        {
            "tree_metadata": tree,
            "use_ocdbt": packed,
            "use_zarr3": driver == "zarr3",
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        },
    )
    write_json(
        step / "_CHECKPOINT_METADATA",
        {
            "item_handlers": {},
            "metrics": metrics or {},
            "init_timestamp_nsecs": 1,
            "commit_timestamp_nsecs": 2,
            "custom_metadata": {},
        },
    )
    if config is not None:
        (step / "model_config").mkdir()
        write_json(step / "model_config" / "_strings.json", {"config": config})
    return step


def write_each(root: Path, *contents: Arrays, **options: Any) -> list[Path]:
    """Write a step for each of several contents, starting with step 0."""
    return [
        write(root / str(step), arrays, **options)
        for step, arrays in enumerate(contents)
    ]


def read(step: Path) -> Arrays:
    """Read the arrays of a step, by their paths in the tree."""
    pytree = step / "pytree"
    tree = json.loads((pytree / "_METADATA").read_text())
    driver = "zarr3" if tree["use_zarr3"] else "zarr"
    found = {}
    for item in tree["tree_metadata"].values():
        keys = [key["key"] for key in item["key_metadata"]]
        kvstore = _kvstore(pytree, ".".join(keys), packed=tree["use_ocdbt"])
        spec = {"driver": driver, "kvstore": kvstore}
        stored = tensorstore.open(spec, read=True).result()
        found["/".join(keys)] = stored.read().result()
    return found


def change_json(path: Path, **changes: Any) -> None:
    """Change some entries of a JSON file."""
    write_json(path, json.loads(path.read_text()) | changes)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content))


def copy(step: Path, target: Path) -> Path:
    """Copy a step."""
    return Path(shutil.copytree(step, target))


def _kvstore(pytree: Path, name: str, *, packed: bool) -> dict[str, Any]:
    if not packed:
        return {"driver": "file", "path": f"{pytree}/{name}/"}
    base = {"driver": "file", "path": f"{pytree}/"}
    return {"driver": "ocdbt", "base": base, "path": f"{name}/"}
