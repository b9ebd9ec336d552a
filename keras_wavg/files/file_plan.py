"""What an averaging of checkpoints will do, decided before any is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.comparison import are_renamed, listed, mismatches
from keras_wavg.files.factors import Factors, require_exact
from keras_wavg.files.floats import FLOATS
from keras_wavg.files.hdf5.structure import Array, Structure


@dataclass(frozen=True)
class FilePlan:
    """What becomes of the checkpoints.

    Args:
        checkpoints: Sequence of `Checkpoint`s, of which the last gives the
            structure of the output, and whatever is not averaged.
        factors: `Factors`, one for each.
        averaged: Set of the paths of arrays that are averaged.
        compared: Set of the paths of arrays that must be equal in all.
        copied: Dict from the paths of arrays that are taken from the last
            checkpoint, to the reasons.
        dropped: Dict from the paths of arrays that are left out, to the
            reasons.
        notes: Sequence of strings, what else a user may want to know.
        config_of: `pathlib.Path` of a `.keras` that gives nothing but its
            config, or `None`.
    """

    checkpoints: Sequence[Checkpoint]
    factors: Factors
    averaged: frozenset[str]
    compared: frozenset[str]
    copied: Mapping[str, str]
    dropped: Mapping[str, str]
    notes: Sequence[str] = ()
    config_of: Path | None = None

    @property
    def last(self) -> Checkpoint:
        """The checkpoint that all else is taken from."""
        return self.checkpoints[-1]

    @property
    def all_match(self) -> bool:
        """Whether all have the same variables, read in the same blocks."""
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
        kept = self.averaged | self.compared | self.copied.keys()
        arrays = self.last.arrays
        return {path: arrays[path] for path in arrays if path in kept}

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
    factors: Factors,
    *,
    strict: bool,
    optimizer: str,
    include: Include = None,
) -> FilePlan:
    """Decide what becomes of each array.

    Args:
        checkpoints: See `FilePlan`.
        factors: See `FilePlan`.
        strict: Boolean, whether all must have the same variables.
        optimizer: `"drop"`, or `"last"` to take over the last one's state.
        include: See `average_checkpoints`.

    Returns:
        A `FilePlan`.

    Raises:
        ValueError: If checkpoints do not match, or nothing can be averaged.
    """
    last = checkpoints[-1]
    _require_one_kind(checkpoints)
    chosen = arguments.predicate(include)
    unshared = _unshared(checkpoints, chosen, strict=strict)
    unshared |= _left_out(last, include)
    shared = {p: a for p, a in last.weights.items() if p not in unshared}
    averaged = {p for p, a in shared.items() if a.dtype in FLOATS}
    if not averaged:
        raise ValueError(
            "Checkpoints must share variables of a floating-point type. "
            f"Received: {[c.name for c in checkpoints]}, which share "
            f"{sorted(shared) or 'none'}"
        )
    require_exact(factors, {shared[path].dtype for path in averaged})
    part_of = last.contents.part_of
    rest = {p: part_of(p) for p in last.arrays if p not in last.weights}
    carried = _carried(last, rest, optimizer)
    return FilePlan(
        checkpoints,
        factors,
        averaged=frozenset(averaged),
        compared=frozenset(shared.keys() - averaged),
        copied={p: unshared[p] for p in last.weights if p in unshared}
        | carried,
        dropped={p: unshared[p] for p in unshared if p not in last.weights}
        | {path: rest[path] for path in rest if path not in carried},
        notes=_notes(checkpoints),
    )


def _require_one_kind(checkpoints: Sequence[Checkpoint]) -> None:
    last = checkpoints[-1]
    for checkpoint in checkpoints:
        if type(checkpoint) is not type(last):
            raise ValueError(
                "Checkpoints must be all files or all folders of Orbax, which "
                "have other paths for the same variables. Received: "
                f"{checkpoint.name} and {last.name}. Average each folder to a "
                "file first, alone."
            )


def _left_out(last: Checkpoint, include: Include) -> dict[str, str]:
    """What is not included, and the reason."""
    if not last.weights:
        raise ValueError(
            "Checkpoints must have at least one weight. Received: "
            f"{last.name}, without"
        )
    chosen = arguments.predicate(include)
    left_out = [path for path in last.weights if not chosen(path)]
    if len(left_out) == len(last.weights):
        raise ValueError(
            "`include` must match the path of at least one variable. Received: "
            f"include={include!r}, for variables as {left_out[:3]}. "
            "`keras_wavg.inspect_checkpoint` shows all."
        )
    return dict.fromkeys(left_out, "not in `include`")


def _unshared(
    checkpoints: Sequence[Checkpoint],
    chosen: Callable[[str], Any],
    *,
    strict: bool,
) -> dict[str, str]:
    last = checkpoints[-1]
    unshared: dict[str, str] = {}
    for checkpoint in checkpoints[:-1]:
        found = mismatches(checkpoint, last)
        problems = {path: found[path] for path in found if chosen(path)}
        if strict and problems:
            raise ValueError(
                "Checkpoints must have the same variables to be averaged. "
                f"Received: {checkpoint.name} and {last.name}, which differ: "
                f"{listed(problems)}. Pass `strict=False` to average what all "
                "have and take the rest from the last one."
            )
        unshared |= problems
    return unshared


def _carried(
    last: Checkpoint, rest: Mapping[str, str], optimizer: str
) -> dict[str, str]:
    carried = {p: part for p, part in rest.items() if part == "random state"}
    if optimizer == "drop":
        return carried
    state = {path: part for path, part in rest.items() if part == "optimizer"}
    if not state:
        raise ValueError(
            "With `optimizer='last'`, the last checkpoint must have the state "
            f"of an optimizer. Received: {last.name}, which has none. Pass "
            "`optimizer='drop'`."
        )
    return carried | state


def _notes(checkpoints: Sequence[Checkpoint]) -> list[str]:
    last = checkpoints[-1]
    return [
        f"{checkpoint.name} has the same layer names as {last.name}, at other "
        "places"
        for checkpoint in checkpoints[:-1]
        if are_renamed(checkpoint, last)
    ]
