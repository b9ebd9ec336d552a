"""Finds variables of two checkpoints that do not match."""

from collections.abc import Mapping

from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.hdf5.structure import Array

_MAX_LISTED = 5


def mismatches(first: Checkpoint, second: Checkpoint) -> dict[str, str]:
    """Find weights that are missing or of another shape or dtype.

    Args:
        first: A `Checkpoint`.
        second: Another `Checkpoint`.

    Returns:
        Dict from the path of each such variable to a description.
    """
    if first.contents is second.contents:
        return {}
    one, two = first.weights, second.weights
    found = dict.fromkeys(one.keys() - two.keys(), f"only in {first.name}")
    found |= dict.fromkeys(two.keys() - one.keys(), f"only in {second.name}")
    for path in one.keys() & two.keys():
        a, b = one[path], two[path]
        if a.shape != b.shape or a.dtype != b.dtype:
            found[path] = f"{_describe(a)} against {_describe(b)}"
    return dict(sorted(found.items()))


def are_reordered(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether the same layer names are at other paths."""
    if first.contents is second.contents:
        return False
    one, two = _layer_names(first), _layer_names(second)
    return one != two and sorted(one.values()) == sorted(two.values())


def summary(problems: Mapping[str, str]) -> str:
    """The first few mismatches, as text."""
    lines = [f"{path}: {problem}" for path, problem in problems.items()]
    more = len(lines) - _MAX_LISTED
    return "; ".join(lines[:_MAX_LISTED]) + (
        f"; and {more} more" if more > 0 else ""
    )


def _describe(array: Array) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _layer_names(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        path: attributes["name"]
        for path, attributes in checkpoint.groups.items()
        if "name" in attributes
    }
