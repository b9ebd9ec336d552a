"""What was done, from what was planned and what was read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from keras_wavg.files.average_report import AverageReport, SourceReport
from keras_wavg.files.checksum import checksum, digest, require_whole
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.streaming import in_parallel
from keras_wavg.files.summing import Summing


def report_of(
    plan: FilePlan,
    summing: Summing,
    output: Path,
    made_of: Sequence[SourceReport] | None,
) -> AverageReport:
    """The report of what was summed."""
    compared = dict.fromkeys(plan.compared, "the same in all")
    compared |= dict.fromkeys(summing.differing, "integers that differ")
    sources = source_reports(plan, _checksums(plan, summing))
    own = digest(summing.arrays, summing.output_sums)
    return described(plan, output, compared, made_of or sources, own)


def described(
    plan: FilePlan,
    output: Path,
    compared: Mapping[str, str],
    sources: Sequence[SourceReport],
    checksum: str,
) -> AverageReport:
    """The report of a plan.

    Args:
        plan: A `FilePlan`.
        output: See `average_checkpoints`.
        compared: Dict from the paths of integers to what they were.
        sources: Sequence of `SourceReport`s.
        checksum: String, of the output.
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


def _checksums(plan: FilePlan, summing: Summing) -> list[str]:
    if not plan.all_match:
        # Not all of a file has been read.
        return [checksum(checkpoint) for checkpoint in plan.checkpoints]
    arrays, sums = summing.arrays, summing.source_sums
    in_parallel(
        lambda pair: require_whole(pair[0], arrays, pair[1]),
        zip(plan.checkpoints, sums, strict=True),
    )
    return [digest(arrays, one) for one in sums]


def source_reports(
    plan: FilePlan, checksums: Sequence[str]
) -> list[SourceReport]:
    """The reports of the checkpoints of a plan, given their checksums."""
    paths = [checkpoint.given for checkpoint in plan.checkpoints]
    rows = zip(paths, plan.factors.coefficients, checksums, strict=True)
    return [SourceReport(*row) for row in rows]
