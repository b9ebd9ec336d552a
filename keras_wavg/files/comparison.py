"""Where the variables of two checkpoints do not match."""

from collections.abc import Mapping

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.hdf5.structure import Array

_SHOWN = 5


def mismatches(ours: Checkpoint, theirs: Checkpoint) -> dict[str, str]:
    """What keeps the weights of two checkpoints from being averaged.

    Args:
        ours: A `Checkpoint`.
        theirs: Another.

    Returns:
        Dict from the path inside of each variable to what is the matter.
    """
    if ours.contents is theirs.contents:
        return {}
    mine, other = ours.weights, theirs.weights
    found = dict.fromkeys(mine.keys() - other.keys(), f"only in {ours.name}")
    found |= dict.fromkeys(other.keys() - mine.keys(), f"only in {theirs.name}")
    for path in mine.keys() & other.keys():
        one, two = mine[path], other[path]
        if one.shape != two.shape or one.dtype != two.dtype:
            found[path] = f"{_kind(one)} against {_kind(two)}"
    return dict(sorted(found.items()))


def are_renamed(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Whether the same names of layers stand at other places."""
    if ours.contents is theirs.contents:
        return False
    one, two = _names(ours), _names(theirs)
    return one != two and sorted(one.values()) == sorted(two.values())


def listed(problems: Mapping[str, str]) -> str:
    """The first few problems, as a text."""
    lines = [f"{path}: {problem}" for path, problem in problems.items()]
    more = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (
        f"; and {more} more" if more > 0 else ""
    )


def _kind(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _names(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        path: attributes["name"]
        for path, attributes in checkpoint.groups.items()
        if "name" in attributes
    }
