"""Plans an average of checkpoints before any weights are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.comparison import are_reordered, mismatches, summary
from keras_wavg.files.floats import FLOATS
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.scaled_coefficients import (
    ScaledCoefficients,
    check_cancellation,
)


@dataclass(frozen=True)
class FilePlan:
    """Which arrays of checkpoints are averaged, compared, copied and dropped.

    Args:
        checkpoints: Sequence of `Checkpoint`s. The structure of the output is
            that of the last one.
        coefficients: `ScaledCoefficients`, one for each checkpoint.
        averaged: Set of the paths of arrays that are averaged.
        compared: Set of the paths of arrays that must be equal in all
            checkpoints.
        copied: Dict from the path of each array that is copied from the last
            checkpoint to the reason.
        dropped: Dict from the path of each array that is not written to the
            reason.
        notes: Sequence of strings, remarks for the report.
        config_of: `pathlib.Path` of a `.keras` file that contributes only its
            config, or `None`.
    """

    checkpoints: Sequence[Checkpoint]
    coefficients: ScaledCoefficients
    averaged: frozenset[str]
    compared: frozenset[str]
    copied: Mapping[str, str]
    dropped: Mapping[str, str]
    notes: Sequence[str] = ()
    config_of: Path | None = None

    @property
    def last(self) -> Checkpoint:
        """The checkpoint that everything else is copied from."""
        return self.checkpoints[-1]

    @property
    def all_match(self) -> bool:
        """Whether all checkpoints have the same weights in the same blocks."""
        part_of = self.last.contents.part_of
        paths = {*self.copied, *self.dropped}
        return not any(part_of(path) == "weights" for path in paths) and all(
            checkpoint.weights[path].chunks == array.chunks
            for checkpoint in self.checkpoints
            if checkpoint.contents is not self.last.contents
            for path, array in self.last.weights.items()
        )

    @property
    def arrays(self) -> dict[str, Array]:
        """The arrays of the output."""
        written = self.averaged | self.compared | self.copied.keys()
        return {p: a for p, a in self.last.arrays.items() if p in written}

    @property
    def structure(self) -> Structure:
        """The structure of the output."""
        arrays, part_of = self.arrays, self.last.contents.part_of
        tops = {path.partition("/")[0] for path in arrays}
        groups = {
            path: attributes
            for path, attributes in self.last.groups.items()
            if part_of(path) == "weights" or path.partition("/")[0] in tops
        }
        return Structure({**groups, "": {}}, arrays)


def make_plan(
    checkpoints: Sequence[Checkpoint],
    coefficients: ScaledCoefficients,
    *,
    strict: bool,
    optimizer: str,
    include: Include = None,
) -> FilePlan:
    """Plan what is done with each array.

    Args:
        checkpoints: See `FilePlan`.
        coefficients: See `FilePlan`.
        strict: Boolean, whether all must have the same variables.
        optimizer: `"drop"`, or `"last"` to copy the optimizer's state.
        include: See `average_checkpoints`.

    Returns:
        A `FilePlan`.

    Raises:
        ValueError: If checkpoints do not match, or nothing can be averaged.
    """
    last = checkpoints[-1]
    _check_formats(checkpoints)
    unshared = _unshared(
        checkpoints, arguments.predicate(include), strict=strict
    )
    unshared |= _excluded(last, include)
    shared = {p: a for p, a in last.weights.items() if p not in unshared}
    averaged = {p for p, a in shared.items() if a.dtype in FLOATS}
    if not averaged:
        raise ValueError(
            "Checkpoints must share variables of a floating-point type. "
            f"Received: {[c.name for c in checkpoints]}, which share "
            f"{sorted(shared) or 'none'}"
        )
    check_cancellation(coefficients, {shared[path].dtype for path in averaged})
    part_of = last.contents.part_of
    others = {p: part_of(p) for p in last.arrays if p not in last.weights}
    copied = _copied(last, others, optimizer)
    return FilePlan(
        checkpoints,
        coefficients,
        averaged=frozenset(averaged),
        compared=frozenset(shared.keys() - averaged),
        copied={p: unshared[p] for p in last.weights if p in unshared} | copied,
        dropped={p: unshared[p] for p in unshared if p not in last.weights}
        | {path: others[path] for path in others if path not in copied},
        notes=_notes(checkpoints),
    )


def _check_formats(checkpoints: Sequence[Checkpoint]) -> None:
    last = checkpoints[-1]
    for checkpoint in checkpoints:
        if type(checkpoint) is not type(last):
            raise ValueError(
                "Checkpoints must be either all files or all Orbax "
                "directories, as these have different paths for the same "
                f"variables. Received: {checkpoint.name} and {last.name}. "
                "Convert each directory to a file first, by averaging it alone."
            )


def _excluded(last: Checkpoint, include: Include) -> dict[str, str]:
    """The variables that `include` excludes, with the reason."""
    if not last.weights:
        raise ValueError(
            "Checkpoints must have at least one weight. Received: "
            f"{last.name}, which has none"
        )
    is_included = arguments.predicate(include)
    excluded = [path for path in last.weights if not is_included(path)]
    if len(excluded) == len(last.weights):
        raise ValueError(
            "`include` must match the path of at least one variable. Received: "
            f"include={include!r}, for variables such as {excluded[:3]}. "
            "`keras_wavg.inspect_checkpoint` lists them all."
        )
    return dict.fromkeys(excluded, "not in `include`")


def _unshared(
    checkpoints: Sequence[Checkpoint],
    is_included: Callable[[str], Any],
    *,
    strict: bool,
) -> dict[str, str]:
    last = checkpoints[-1]
    unshared: dict[str, str] = {}
    for checkpoint in checkpoints[:-1]:
        found = mismatches(checkpoint, last)
        problems = {path: found[path] for path in found if is_included(path)}
        if strict and problems:
            raise ValueError(
                "Checkpoints must have the same variables to be averaged. "
                f"Received: {checkpoint.name} and {last.name}, which differ: "
                f"{summary(problems)}. Pass `strict=False` to average the "
                "variables that all have, and copy the others from the last "
                "checkpoint."
            )
        unshared |= problems
    return unshared


def _copied(
    last: Checkpoint, others: Mapping[str, str], optimizer: str
) -> dict[str, str]:
    """The arrays besides weights that are copied, with their parts."""
    copied = {p: part for p, part in others.items() if part == "random state"}
    if optimizer == "drop":
        return copied
    state = {path: part for path, part in others.items() if part == "optimizer"}
    if not state:
        raise ValueError(
            "With `optimizer='last'`, the last checkpoint must have the state "
            f"of an optimizer. Received: {last.name}, which has none. Pass "
            "`optimizer='drop'`."
        )
    return copied | state


def _notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    last = checkpoints[-1]
    return [
        f"{checkpoint.name} has the layer names of {last.name} in another order"
        for checkpoint in checkpoints[:-1]
        if are_reordered(checkpoint, last)
    ]
