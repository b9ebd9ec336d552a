"""Compares the weights of two checkpoints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy

from keras_wavg.files import floats
from keras_wavg.files.checkpoint import Checkpoint
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.checksum import check_archive_crc, crc32, empty_checksums
from keras_wavg.files.comparison import mismatches
from keras_wavg.files.error_text import printable
from keras_wavg.files.progress_bar import progress_bar
from keras_wavg.files.remote import AnyPath
from keras_wavg.files.streaming import Block, Progress, blocks, for_each_block
from keras_wavg.files.text_table import table


@dataclass(frozen=True)
class Distance:
    """The distance between two variables.

    Args:
        euclidean: Float, the Euclidean norm of the difference.
        relative: Float, the same divided by the norm of the first variable.
        largest: Float, the largest absolute difference of two elements.
    """

    euclidean: float
    relative: float
    largest: float


@dataclass(frozen=True)
class Difference:
    """The difference between two checkpoints. `str` of it is a table.

    Args:
        mismatches: Dict from the path of each variable that cannot be compared
            to the reason.
        distances: Dict from the path of each other variable to its `Distance`.
        layers: Dict from the path of each variable to the name of its layer, as
            far as the files contain it. Defaults to an empty one.
    """

    mismatches: Mapping[str, str]
    distances: Mapping[str, Distance]
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_equal(self) -> bool:
        """Whether all weights are equal."""
        largest = (distance.largest for distance in self.distances.values())
        return not self.mismatches and not any(largest)

    def __repr__(self) -> str:
        return (
            f"Difference(weights_equal={self.weights_equal}, "
            f"compared={len(self.distances)}, "
            f"mismatches={len(self.mismatches)})"
        )

    def __str__(self) -> str:
        rows = [
            (
                self._with_layer(path),
                f"{d.euclidean:.6g}",
                f"{d.relative:.3g}",
                f"{d.largest:.6g}",
            )
            for path, d in self.distances.items()
        ]
        header = ("variable", "distance", "relative", "largest")
        lines = [
            f"{self._with_layer(path)}: {reason}"
            for path, reason in self.mismatches.items()
        ]
        if self.weights_equal:
            lines.append("the weights are equal")
        return "\n".join([table(header, rows), *lines])

    def _with_layer(self, path: str) -> str:
        layer = self.layers.get(path, "")
        if layer in path.split("/") or not layer:
            return path
        return f"{path} ({printable(layer)})"


def diff_checkpoints(
    filepath: AnyPath, other_filepath: AnyPath, *, verbose: Any = "auto"
) -> Difference:
    """Compare the weights of two checkpoints.

    Args:
        filepath: String or path-like, a `.weights.h5`, sharded
            `.weights.json` or `.keras` file, an Orbax directory, or the URL of
            one of these.
        other_filepath: String or path-like, the checkpoint to compare with.
        verbose: `"auto"`, 0 or 1, whether to show a progress bar on standard
            error. `"auto"` shows it on a terminal. Defaults to `"auto"`.

    Example:

    >>> import tempfile, keras, numpy, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [f"{directory}/{name}.weights.h5" for name in "ab"]
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
        ValueError: If a file is damaged or was not written by Keras.
        OSError: If a file cannot be read.
    """
    opener = CheckpointOpener()
    with (
        opener.open(filepath) as first,
        opener.open(other_filepath) as second,
        progress_bar("comparing", verbose) as progress,
    ):
        problems = mismatches(first, second)
        return Difference(
            problems,
            _distances(first, second, problems, progress),
            _layers(second) | _layers(first),
        )


def _layers(checkpoint: Checkpoint) -> dict[str, str]:
    """The names of layers, by the paths of their variables."""
    groups = {path: path.rpartition("/")[0] for path in checkpoint.weights}
    attributes = {
        path: checkpoint.groups.get(group, {}) for path, group in groups.items()
    }
    return {
        p: found["name"] for p, found in attributes.items() if "name" in found
    }


def _distances(
    first: Checkpoint,
    second: Checkpoint,
    problems: Mapping[str, str],
    progress: Progress | None,
) -> dict[str, Distance]:
    arrays = {p: a for p, a in first.weights.items() if p not in problems}
    checksums = empty_checksums(arrays), empty_checksums(arrays)
    # Of each block: squared distance, squared norm, largest difference.
    measures = numpy.zeros((len(checksums[0]), 3))

    def work(block: Block) -> None:
        one = _values(first, block, checksums[0])
        two = _values(second, block, checksums[1])
        apart = numpy.abs(one - two)
        measures[block.index] = apart @ apart, one @ one, apart.max()

    for_each_block(work, arrays, progress)
    check_archive_crc(first, arrays, checksums[0])
    check_archive_crc(second, arrays, checksums[1])
    totals = {path: numpy.zeros(3) for path in arrays}
    for block in blocks(arrays):
        row, total = measures[block.index], totals[block.path]
        total[:2] += row[:2]
        total[2] = numpy.maximum(total[2], row[2])
    return {path: _distance(*totals[path]) for path in arrays}


def _values(
    checkpoint: Checkpoint, block: Block, checksums: floats.Numbers
) -> floats.Numbers:
    data = numpy.empty(block.nbytes, "uint8")
    checkpoint.read_into(data.data, block)
    checksums[block.index] = crc32(data)
    dtype = checkpoint.arrays[block.path].dtype
    if dtype in floats.FLOATS:
        return floats.decode(data, dtype).astype("float64")
    return data.view(dtype).astype("float64")


def _distance(squared: float, norm: float, largest: float) -> Distance:
    apart = math.sqrt(squared)
    if not norm:
        return Distance(apart, math.inf if apart else 0.0, float(largest))
    return Distance(apart, apart / math.sqrt(norm), float(largest))
