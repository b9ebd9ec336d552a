"""What is in a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg.files.average_report import table
from keras_wavg.files.checkpoint import PARTS, Checkpoint
from keras_wavg.files.checksum import (
    checksum,
    is_unchanged,
    sees_order,
    short,
)
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.opener import Opener
from keras_wavg.files.remote import AnyPath
from keras_wavg.files.source import printable
from keras_wavg.files.streaming import Progress
from keras_wavg.profile import ATTRIBUTE, Profile


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint. Printed, it is a table.

    Args:
        path: `pathlib.Path` of the file.
        arrays: Dict from the path of each variable to its `Array`.
        parts: Dict from the path of each variable to what it is a part of:
            `"weights"`, `"random state"`, `"optimizer"`, `"metrics"` or
            `"average"`.
        provenance: Dict that `average_checkpoints` left in the file, or `None`.
        checksum: String, of the weights.
        is_unchanged: Boolean, whether the weights have the checksum that they
            were written with, or `None` where nobody knows it.
        profile: String, what `Profile` the weights carry, or `None`.
    """

    path: Path
    arrays: Mapping[str, Array]
    parts: Mapping[str, str]
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
        for part in PARTS:
            own = [a for p, a in self.arrays.items() if self.parts[p] == part]
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
    """Describe the contents of a checkpoint.

    Args:
        path: A `.weights.h5`, sharded `.weights.json` or `.keras`, a folder of
            Orbax, or the URL of one of these.
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
            checkpoint.given,
            dict(checkpoint.arrays),
            {p: checkpoint.contents.part_of(p) for p in checkpoint.arrays},
            kept,
            own,
            is_unchanged(checkpoint, own, kept["checksum"]) if kept else None,
            _profile(checkpoint.attributes.get(ATTRIBUTE)),
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
