"""What an averaging of checkpoints did, to be read and to be kept."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_wavg.files.checksum import short
from keras_wavg.files.source import printable


@dataclass(frozen=True)
class SourceReport:
    """One of the averaged checkpoints.

    Args:
        path: `pathlib.Path` of the file.
        coefficient: Float, how much it counts.
        checksum: String, see `keras_wavg.files.checksum`.
    """

    path: Path
    coefficient: float
    checksum: str


@dataclass(frozen=True)
class AverageReport:
    """What `average_checkpoints` did. Printed, it is a table.

    Args:
        output: `pathlib.Path` of the file that was written.
        sources: Sequence of `SourceReport`s.
        averaged: Sequence of the paths of averaged variables.
        copied: Dict from the paths of variables that were taken from the last
            checkpoint, to the reasons.
        dropped: Dict from the paths of variables that were left out, to the
            reasons.
        notes: Sequence of strings, what else there is to know.
        checksum: String, of the output.
    """

    output: Path
    sources: Sequence[SourceReport]
    averaged: Sequence[str]
    copied: Mapping[str, str]
    dropped: Mapping[str, str]
    notes: Sequence[str]
    checksum: str

    def provenance(self) -> str:
        """What the output keeps about itself, as JSON."""
        sources = [
            {**asdict(source), "path": str(source.path)}
            for source in self.sources
        ]
        return json.dumps({"sources": sources, "checksum": self.checksum})

    def __str__(self) -> str:
        rows = [
            (str(s.path), f"{s.coefficient:.6g}", short(s.checksum))
            for s in self.sources
        ]
        rows.append((str(self.output), "", short(self.checksum)))
        header = ("checkpoint", "coefficient", "checksum")
        return "\n".join([table(header, rows), *self._lines()])

    def _lines(self) -> list[str]:
        lines = [f"averaged: {len(self.averaged)} variables"]
        for verb, paths in (("copied", self.copied), ("dropped", self.dropped)):
            lines += [
                f"{verb}: {count} variables ({reason})"
                for reason, count in Counter(paths.values()).items()
            ]
        return lines + [f"note: {note}" for note in self.notes]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table, the first column on the left.

    `rich` takes ten seconds for 20,000 rows, and there may be more.
    """
    shown = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    line = "-" * (sum(widths) + 2 * len(widths) - 2)
    first, *others = ["  ".join(_aligned(row, widths)) for row in shown]
    return "\n".join(text.rstrip() for text in (first, line, *others))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [
        first[0].ljust(first[1]),
        *(text.rjust(width) for text, width in others),
    ]
