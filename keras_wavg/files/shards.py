"""`.weights.json` files: indexes of shards, which are HDF5 files beside it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_wavg.files.error_text import brief
from keras_wavg.files.input_file import InputFile

_MAX_INDEX = 1 << 22


def read_index(path: Path) -> dict[str, set[str]]:
    """Read which groups of variables are in which shard.

    Args:
        path: `pathlib.Path` of a `.weights.json` file.

    Returns:
        Dict from the name of each shard to the paths of its groups.

    Raises:
        ValueError: If Keras does not write such an index.
    """
    with InputFile(path) as file:
        if file.size > _MAX_INDEX:
            file.refuse("it is too long for an index of shards")
        try:
            weight_map = json.loads(file.read(0, file.size))["weight_map"]
            pairs = [
                (name, group.removeprefix("/"))
                for group, names in weight_map.items()
                for name in ([names] if isinstance(names, str) else names)
            ]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            file.refuse(f"it is not an index of shards ({error!r:.99})")
        except RecursionError:
            file.refuse("it is not an index of shards, but nested too deep")
        shards: dict[str, set[str]] = {}
        for name, group in pairs:
            if not isinstance(name, str) or not _is_shard(path, name):
                file.refuse(f"it names {brief(repr(name))} as a shard")
            shards.setdefault(name, set()).add(group)
        if not shards:
            file.refuse("it names no shards")
        return shards


def shard_name(index: Path, number: int) -> str:
    """The name that Keras gives a shard."""
    return f"{_base(index)}_{number:05}.weights.h5"


def shards_beside(path: Path) -> list[Path]:
    """The files beside an index with names of its shards.

    Args:
        path: `pathlib.Path`. There are none if it is not a `.weights.json`.
    """
    if not path.name.endswith(".weights.json"):
        return []
    beside = path.parent.iterdir()
    return [shard for shard in beside if _is_shard(path, shard.name)]


def write_index(
    path: Path, shards: Mapping[str, Sequence[str]], total_size: int
) -> None:
    """Write the index of shards.

    Args:
        path: `pathlib.Path` of the `.weights.json` file to write.
        shards: Dict from the name of each shard to the paths of its groups.
        total_size: Integer, the size of all variables in bytes.
    """
    weight_map: dict[str, list[str]] = {}
    for name, groups in shards.items():
        for group in groups:
            weight_map.setdefault(f"/{group}", []).append(name)
    index = {
        "metadata": {"total_size": total_size},
        "weight_map": weight_map,
    }
    path.write_text(json.dumps(index, indent=4))


def _is_shard(index: Path, name: str) -> bool:
    pattern = re.escape(_base(index)) + r"_\d{5}\.weights\.h5"
    return re.fullmatch(pattern, name, re.ASCII) is not None


def _base(index: Path) -> str:
    return index.stem.replace(".weights", "")
