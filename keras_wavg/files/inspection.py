"""Describes the contents of a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_wavg.files.checkpoint import PARTS, Checkpoint
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.checksum import (
    checksum,
    is_current_format,
    is_unchanged,
    short,
)
from keras_wavg.files.error_text import printable
from keras_wavg.files.hdf5.structure import Array
from keras_wavg.files.progress_bar import progress_bar
from keras_wavg.files.remote import AnyPath
from keras_wavg.files.text_table import table
from keras_wavg.profile import ATTRIBUTE, PARSING_ERRORS, Profile


@dataclass(frozen=True)
class Inspection:
    """The contents of a checkpoint. `str` of it is a table.

    Args:
        path: `pathlib.Path` of the checkpoint.
        arrays: Dict from the path of each variable to its `Array`.
        parts: Dict from the path of each variable to the part of the checkpoint
            that it belongs to: `"weights"`, `"random state"`, `"optimizer"`,
            `"metrics"` or `"average"`.
        provenance: Dict of the sources and the checksum that
            `average_checkpoints` saved in the file, or `None`.
        checksum: String, the checksum of the weights.
        is_unchanged: Boolean, whether the weights still have the saved
            checksum, or `None` if no checksum was saved.
        profile: String, the `Profile` that was saved with the weights, or
            `None`.
    """

    path: Path
    arrays: Mapping[str, Array]
    parts: Mapping[str, str]
    provenance: Mapping[str, Any] | None
    checksum: str
    is_unchanged: bool | None
    profile: str | None

    def __repr__(self) -> str:
        return (
            f"Inspection(path={str(self.path)!r}, variables={len(self.arrays)}"
            f", checksum={short(self.checksum)!r}, "
            f"is_unchanged={self.is_unchanged}, profile={self.profile!r})"
        )

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
            (s["path"], f"{s['coefficient']:.6g}", short(s["checksum"]))
            for s in self.provenance["sources"]
        ]
        header = ("averaged from", "coefficient", "checksum")
        state = "unchanged since" if self.is_unchanged else "CHANGED SINCE"
        is_current = is_current_format(self.provenance["checksum"])
        if self.is_unchanged and not is_current:
            state += (
                ", or reordered: the checksum was made by an earlier version, "
                "which did not detect a change of order"
            )
        return [table(header, rows), f"weights: {state}"]


def inspect_checkpoint(
    filepath: AnyPath, *, verbose: Any = "auto"
) -> Inspection:
    """Describe the contents of a checkpoint.

    Args:
        filepath: String or path-like, a `.weights.h5`, sharded
            `.weights.json` or `.keras` file, an Orbax directory, or the URL of
            one of these.
        verbose: `"auto"`, 0 or 1, whether to show a progress bar on standard
            error. `"auto"` shows it on a terminal. Defaults to `"auto"`.

    Example:

    >>> import tempfile, keras, keras_wavg
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     model.save_weights(f"{directory}/a.weights.h5")
    ...     found = keras_wavg.inspect_checkpoint(f"{directory}/a.weights.h5")
    >>> {path: array.shape for path, array in found.arrays.items()}
    {'layers/dense/vars/0': (2, 1), 'layers/dense/vars/1': (1,)}

    Returns:
        An `Inspection`.

    Raises:
        ValueError: If the file is damaged or was not written by Keras.
        OSError: If the file cannot be read.
    """
    with (
        CheckpointOpener().open(filepath) as checkpoint,
        progress_bar("reading", verbose) as progress,
    ):
        own = checksum(checkpoint, progress)
        provenance = _provenance(checkpoint)
        return Inspection(
            checkpoint.location,
            dict(checkpoint.arrays),
            {p: checkpoint.contents.part_of(p) for p in checkpoint.arrays},
            provenance,
            own,
            is_unchanged(checkpoint, own, provenance["checksum"])
            if provenance
            else None,
            _profile(checkpoint.attributes.get(ATTRIBUTE)),
        )


def _profile(text: str | None) -> str | None:
    """The saved profile, or `None` if it is invalid."""
    try:
        return None if text is None else str(Profile.from_json(text))
    except ValueError:
        return None


def _provenance(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The saved provenance, or `None` if it is invalid."""
    try:
        saved = json.loads(checkpoint.provenance or "null")
        return {
            "sources": [
                {
                    "path": printable(str(source["path"])),
                    "coefficient": float(source["coefficient"]),
                    "checksum": printable(str(source["checksum"])),
                }
                for source in saved["sources"]
            ],
            "checksum": printable(str(saved["checksum"])),
        }
    except PARSING_ERRORS:
        return None
