"""What an averaging of checkpoints did, to be read and to be kept."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Wide enough to leave the paths of files in one piece.
_WIDTH = 200


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

    def to_json(self) -> str:
        """All of it, for machines."""
        return json.dumps(asdict(self), default=str)

    def provenance(self) -> str:
        """What the output keeps about itself, as JSON."""
        sources = [
            {**asdict(source), "path": str(source.path)}
            for source in self.sources
        ]
        return json.dumps({"sources": sources, "checksum": self.checksum})

    def __str__(self) -> str:
        rows = [
            (str(s.path), f"{s.coefficient:.6g}", s.checksum[:12])
            for s in self.sources
        ]
        rows.append((str(self.output), "", self.checksum[:12]))
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
    """Rows of text as a table, the first column on the left."""
    # It takes a while, and not everybody prints.
    from rich import box, console, text  # noqa: PLC0415
    from rich import table as tables  # noqa: PLC0415

    drawn = tables.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        drawn.add_column(
            name, justify="right" if number else "left", overflow="fold"
        )
    for row in rows:
        drawn.add_row(*map(text.Text, row))
    stream = io.StringIO()
    console.Console(file=stream, width=_WIDTH).print(drawn)
    lines = stream.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())
