"""How far the weights of two checkpoints are apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy

from keras_wavg.files import floats
from keras_wavg.files.average_report import table
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.checksum import crc32, require_whole, room_for_sums
from keras_wavg.files.comparison import mismatches
from keras_wavg.files.opener import Opener
from keras_wavg.files.remote import AnyPath
from keras_wavg.files.source import printable
from keras_wavg.files.streaming import Block, Progress, blocks, for_each


@dataclass(frozen=True)
class Distance:
    """How far two variables are apart.

    Args:
        euclidean: Float, the norm of the difference.
        relative: Float, the same, divided by the norm of the first.
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
        one: A `.weights.h5`, sharded `.weights.json` or `.keras`, a folder of
            Orbax, or the URL of one of these.
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
    checkpoint: Checkpoint, block: Block, sums: floats.Numbers
) -> floats.Numbers:
    data = numpy.empty(block.nbytes, "uint8")
    checkpoint.read_into(data.data, block)
    sums[block.index] = crc32(data)
    dtype = checkpoint.arrays[block.path].dtype
    if dtype in floats.FLOATS:
        return floats.decode(data, dtype).astype("float64")
    return data.view(dtype).astype("float64")


def _distance(squared: float, norm: float, largest: float) -> Distance:
    apart = math.sqrt(squared)
    if not norm:
        return Distance(apart, math.inf if apart else 0.0, float(largest))
    return Distance(apart, apart / math.sqrt(norm), float(largest))
