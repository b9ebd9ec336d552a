"""Reports of `average_checkpoints`, and how they are made from a plan."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_wavg.files.block_averager import BlockAverager
from keras_wavg.files.checksum import check_archive_crc, checksum, digest, short
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.conversion import is_converted, model_config
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint
from keras_wavg.files.paths import config_archive, step_to_write
from keras_wavg.files.streaming import run_in_parallel
from keras_wavg.files.text_table import table


@dataclass(frozen=True)
class SourceReport:
    """One of the averaged checkpoints.

    Args:
        path: `pathlib.Path` of the checkpoint.
        coefficient: Float, its coefficient in the average.
        checksum: String, the checksum of its weights.
    """

    path: Path
    coefficient: float
    checksum: str


@dataclass(frozen=True)
class AverageReport:
    """The result of `average_checkpoints`. `str` of it is a table.

    Args:
        output: `pathlib.Path` of the written file or directory.
        sources: Sequence of `SourceReport`s, one for each checkpoint.
        averaged: Sequence of strings, the paths of the averaged variables.
        copied: Dict from the path of each variable that was copied from the
            last checkpoint to the reason.
        dropped: Dict from the path of each variable that was not written to
            the reason.
        notes: Sequence of strings, remarks on the checkpoints.
        checksum: String, the checksum of the written weights.
    """

    output: Path
    sources: Sequence[SourceReport]
    averaged: Sequence[str]
    copied: Mapping[str, str]
    dropped: Mapping[str, str]
    notes: Sequence[str]
    checksum: str

    def provenance(self) -> str:
        """The sources and the checksum as JSON, to be saved in the output."""
        sources = [
            {**asdict(source), "path": str(source.path)}
            for source in self.sources
        ]
        return json.dumps({"sources": sources, "checksum": self.checksum})

    def __repr__(self) -> str:
        return (
            f"AverageReport(output={str(self.output)!r}, "
            f"sources={len(self.sources)}, averaged={len(self.averaged)}, "
            f"copied={len(self.copied)}, dropped={len(self.dropped)}, "
            f"checksum={short(self.checksum)!r})"
        )

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


def final_report(
    plan: FilePlan,
    averager: BlockAverager,
    output: Path,
    sources: Sequence[SourceReport] | None = None,
) -> AverageReport:
    """Report on an average after all blocks have been averaged.

    Args:
        plan: A `FilePlan`.
        averager: The `BlockAverager` of the plan.
        output: `pathlib.Path` of the output.
        sources: Sequence of `SourceReport`s to name instead of the checkpoints
            of the plan. Defaults to `None`.
    """
    compared = dict.fromkeys(plan.compared, "the same in all")
    compared |= dict.fromkeys(averager.differing, "integers that differ")
    # The checkpoints are checked in either case.
    own = source_reports(plan, _checksums(plan, averager))
    made = digest(averager.arrays, averager.output_crcs)
    return build_report(plan, output, compared, sources or own, made)


def dry_run_report(
    plan: FilePlan, output: Path, *, overwrite: bool = False
) -> AverageReport:
    """Report on an average before it is computed, without checksums.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the output.
        overwrite: See `average_checkpoints`.

    Raises:
        ValueError: If the average cannot be written to `output`.
        FileExistsError: If it exists and `overwrite` is false.
    """
    config_archive(plan, output)
    if is_converted(plan, output):
        model_config(plan)
    elif isinstance(plan.last, OrbaxCheckpoint):
        step_to_write(plan, output, overwrite=overwrite)
    compared = dict.fromkeys(plan.compared, "if the same in all")
    sources = source_reports(plan, [""] * len(plan.checkpoints))
    return build_report(plan, output, compared, sources, "")


def build_report(
    plan: FilePlan,
    output: Path,
    compared: Mapping[str, str],
    sources: Sequence[SourceReport],
    checksum: str,
) -> AverageReport:
    """Build a report from a plan.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the output.
        compared: Dict from the path of each integer variable to the result of
            its comparison.
        sources: Sequence of `SourceReport`s.
        checksum: String, the checksum of the output.
    """
    return AverageReport(
        output=output,
        sources=tuple(sources),
        averaged=tuple(sorted(plan.averaged)),
        copied={**compared, **plan.copied},
        dropped=dict(plan.dropped),
        notes=tuple(plan.notes),
        checksum=checksum,
    )


def source_reports(
    plan: FilePlan, checksums: Sequence[str]
) -> list[SourceReport]:
    """The reports of the checkpoints of a plan, given their checksums."""
    paths = [checkpoint.location for checkpoint in plan.checkpoints]
    rows = zip(paths, plan.coefficients.values, checksums, strict=True)
    return [SourceReport(*row) for row in rows]


def _checksums(plan: FilePlan, averager: BlockAverager) -> list[str]:
    if not plan.all_match:
        # Some weights have not been read.
        return [checksum(checkpoint) for checkpoint in plan.checkpoints]
    arrays, sums = averager.arrays, averager.source_crcs
    run_in_parallel(
        lambda pair: check_archive_crc(pair[0], arrays, pair[1]),
        zip(plan.checkpoints, sums, strict=True),
    )
    return [digest(arrays, one) for one in sums]
