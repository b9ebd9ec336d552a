"""What is in a checkpoint, and how far two of them are apart."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from keras_wavg.files import numbers
from keras_wavg.files.checkpoint import (
    Checkpoint,
    Opener,
    part_of,
)
from keras_wavg.files.checksum import (
    checksum,
    crc32,
    is_unchanged,
    require_whole,
    room_for_sums,
    sees_order,
    short,
)
from keras_wavg.files.comparison import mismatches
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.report import table
from keras_wavg.files.source import printable
from keras_wavg.files.streaming import Block, Progress, blocks, for_each
from keras_wavg.profile import ATTRIBUTE, Profile

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint. Printed, it is a table.

    Args:
        path: `pathlib.Path` of the file.
        arrays: Dict from the path of each variable to its `Array`.
        provenance: Dict that `average_checkpoints` left in the file, or `None`.
        checksum: String, of the weights.
        is_unchanged: Boolean, whether the weights have the checksum that they
            were written with, or `None` where nobody knows it.
        profile: String, what `Profile` the weights carry, or `None`.
    """

    path: Path
    arrays: Mapping[str, Array]
    provenance: Mapping[str, Any] | None
    checksum: str
    is_unchanged: bool | None
    profile: str | None

    def __str__(self) -> str:
        rows = [
            (path, array.dtype, str(array.shape), f"{array.nbytes:,}")
            for path, array in self.arrays.items()
        ]
        lines = [table(("variable", "dtype", "shape", "bytes"), rows)]
        for part in ("weights", "optimizer", "average"):
            own = [a for p, a in self.arrays.items() if part_of(p) == part]
            if own:
                lines.append(
                    f"{part}: {len(own)} variables, "
                    f"{sum(a.count for a in own):,} numbers, "
                    f"{sum(a.nbytes for a in own):,} bytes"
                )
        if self.profile is not None:
            lines.append(f"an average {self.profile}")
        lines.append(f"checksum of the weights: {self.checksum}")
        return "\n".join(lines + self._sources())

    def _sources(self) -> list[str]:
        if self.provenance is None:
            return []
        rows = [
            (
                s["path"],
                f"{s['coefficient']:.6g}",
                short(s["checksum"]),
            )
            for s in self.provenance["sources"]
        ]
        header = ("averaged from", "coefficient", "checksum")
        state = "unchanged since" if self.is_unchanged else "CHANGED SINCE"
        if self.is_unchanged and not sees_order(self.provenance["checksum"]):
            state += (
                ", or reordered: the checksum was made by an earlier version "
                "and does not see order"
            )
        return [table(header, rows), f"weights: {state}"]


def inspect_checkpoint(
    path: AnyPath, progress: Progress | None = None
) -> Inspection:
    """Look what is in a checkpoint.

    Args:
        path: A `.weights.h5`, sharded `.weights.json` or `.keras`.
        progress: Function that is called with the bytes done and the bytes in
            all, or `None`.

    Example:

    >>> import tempfile, keras, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_weights(f"{folder}/a.weights.h5")
    ...     found = keras_wavg.inspect_checkpoint(f"{folder}/a.weights.h5")
    >>> {path: array.shape for path, array in found.arrays.items()}
    {'layers/dense/vars/0': (2, 1), 'layers/dense/vars/1': (1,)}

    Returns:
        An `Inspection`.

    Raises:
        ValueError: If it is not a file as Keras writes it.
        OSError: If it cannot be read.
    """
    with Opener().open(path) as checkpoint:
        own = checksum(checkpoint, progress)
        kept = _provenance(checkpoint)
        return Inspection(
            checkpoint.path,
            dict(checkpoint.arrays),
            kept,
            own,
            is_unchanged(checkpoint, own, kept["checksum"]) if kept else None,
            _profile(checkpoint.groups[""].get(ATTRIBUTE)),
        )


def _profile(text: str | None) -> str | None:
    """What an attribute says, if it is of our making."""
    try:
        return None if text is None else str(Profile.from_json(text))
    except ValueError:
        return None


def _provenance(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What an attribute says, if it is of our making."""
    try:
        kept = json.loads(checkpoint.provenance or "null")
        return {
            "sources": [
                {
                    "path": printable(str(source["path"])),
                    "coefficient": float(source["coefficient"]),
                    "checksum": printable(str(source["checksum"])),
                }
                for source in kept["sources"]
            ],
            "checksum": printable(str(kept["checksum"])),
        }
    except (
        ValueError,
        TypeError,
        LookupError,
        OverflowError,
        RecursionError,
    ):
        return None


@dataclass(frozen=True)
class Distance:
    """How far two variables are apart.

    Args:
        euclidean: Float, the norm of the difference.
        relative: Float, the same by the norm of the first.
        largest: Float, the greatest absolute difference.
    """

    euclidean: float
    relative: float
    largest: float


@dataclass(frozen=True)
class Difference:
    """How two checkpoints differ. Printed, it is a table.

    Args:
        mismatches: Dict from the paths of variables that cannot be compared to
            the reasons.
        distances: Dict from the paths of the others to `Distance`s.
        layers: Dict from paths to the names of layers, where files have them.
    """

    mismatches: Mapping[str, str]
    distances: Mapping[str, Distance]
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_none(self) -> bool:
        """Whether all weights are the same numbers."""
        apart = (distance.largest for distance in self.distances.values())
        return not self.mismatches and not any(apart)

    def __str__(self) -> str:
        rows = [
            (
                self._named(path),
                f"{d.euclidean:.6g}",
                f"{d.relative:.3g}",
                f"{d.largest:.6g}",
            )
            for path, d in self.distances.items()
        ]
        header = ("variable", "distance", "relative", "largest")
        lines = [
            f"{self._named(path)}: {why}"
            for path, why in self.mismatches.items()
        ]
        if self.is_none:
            lines.append("the weights are the same")
        return "\n".join([table(header, rows), *lines])

    def _named(self, path: str) -> str:
        layer = self.layers.get(path, "")
        if layer in path.split("/") or not layer:
            return path
        return f"{path} ({printable(layer)})"


def diff_checkpoints(
    one: AnyPath, two: AnyPath, progress: Progress | None = None
) -> Difference:
    """Compare the weights of two checkpoints.

    Args:
        one: A `.weights.h5`, sharded `.weights.json` or `.keras`.
        two: Another.
        progress: See `inspect_checkpoint`.

    Example:

    >>> import tempfile, keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [f"{folder}/{name}.weights.h5" for name in "ab"]
    ...     for path, value in zip(paths, (1.0, 4.0)):
    ...         kernel, bias = numpy.ones((2, 1)), numpy.full(1, value)
    ...         model.set_weights([kernel, bias])
    ...         model.save_weights(path)
    ...     found = keras_wavg.diff_checkpoints(*paths)
    >>> {path: d.euclidean for path, d in found.distances.items()}
    {'layers/dense/vars/0': 0.0, 'layers/dense/vars/1': 3.0}

    Returns:
        A `Difference`.

    Raises:
        ValueError: If one is not a file as Keras writes it.
        OSError: If one cannot be read.
    """
    opener = Opener()
    with opener.open(one) as ours, opener.open(two) as theirs:
        problems = mismatches(ours, theirs)
        return Difference(
            problems,
            _distances(ours, theirs, problems, progress),
            _layers(theirs) | _layers(ours),
        )


def _layers(checkpoint: Checkpoint) -> dict[str, str]:
    """The names of the layers of variables."""
    groups = {path: path.rpartition("/")[0] for path in checkpoint.weights}
    attributes = {
        path: checkpoint.groups.get(group, {}) for path, group in groups.items()
    }
    return {
        p: found["name"] for p, found in attributes.items() if "name" in found
    }


def _distances(
    ours: Checkpoint,
    theirs: Checkpoint,
    problems: Mapping[str, str],
    progress: Progress | None,
) -> dict[str, Distance]:
    arrays = {p: a for p, a in ours.weights.items() if p not in problems}
    sums = room_for_sums(arrays), room_for_sums(arrays)
    squares = numpy.zeros((len(sums[0]), 3))

    def work(block: Block) -> None:
        one = _values(ours, block, sums[0])
        two = _values(theirs, block, sums[1])
        apart = numpy.abs(one - two)
        squares[block.index] = apart @ apart, one @ one, apart.max()

    for_each(work, arrays, progress)
    require_whole(ours, arrays, sums[0])
    require_whole(theirs, arrays, sums[1])
    found = {path: numpy.zeros(3) for path in arrays}
    for block in blocks(arrays):
        row = squares[block.index]
        old = found[block.path]
        old[:2] += row[:2]
        old[2] = numpy.maximum(old[2], row[2])
    return {path: _distance(*found[path]) for path in arrays}


def _values(
    checkpoint: Checkpoint, block: Block, sums: numbers.Numbers
) -> numbers.Numbers:
    data = numpy.empty(block.nbytes, "uint8")
    checkpoint.read_into(block.path, data.data, block.start)
    sums[block.index] = crc32(data)
    dtype = checkpoint.arrays[block.path].dtype
    if dtype in numbers.FLOATS:
        return numbers.decode(data, dtype).astype("float64")
    return data.view(dtype).astype("float64")


def _distance(squared: float, norm: float, largest: float) -> Distance:
    apart = math.sqrt(squared)
    if not norm:
        return Distance(apart, math.inf if apart else 0.0, float(largest))
    return Distance(apart, apart / math.sqrt(norm), float(largest))
