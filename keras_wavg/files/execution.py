"""Does what was planned, and writes the output."""

from collections.abc import Sequence
from pathlib import Path

import numpy

from keras_wavg.files.average_report import AverageReport, SourceReport
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.conversion import config, is_converted, write_file
from keras_wavg.files.outputs import Written, opened
from keras_wavg.files.planning import planned
from keras_wavg.files.remote import folder_for
from keras_wavg.files.reports import report_of
from keras_wavg.files.streaming import (
    WHOLE,
    Block,
    Progress,
    Share,
    for_each,
)
from keras_wavg.files.summing import Summing


def execute(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    made_of: Sequence[SourceReport] | None = None,
) -> AverageReport:
    """Do what was planned, and write the output, whole or not at all.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the file to write.
        strict: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.
        progress: See `average_checkpoints`.
        made_of: Sequence of `SourceReport`s of what the checkpoints were made
            of themselves, to be named in their place, or `None`.

    Returns:
        An `AverageReport`.

    Raises:
        See `average_checkpoints`.
    """
    if is_converted(plan, output):
        return _converted(
            plan, output, strict=strict, overwrite=overwrite, progress=progress
        )
    with opened(plan, output, overwrite=overwrite) as made:
        summing = Summing(plan, made, strict=strict)
        work(plan, summing, made, progress=progress)
        report = report_of(plan, summing, output, made_of)
        made.finish(report.provenance())
    return report


def _converted(
    plan: FilePlan,
    output: Path,
    *,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AverageReport:
    """The average of folders of Orbax, as a file."""
    text = config(plan)  # It may be missing: before all is averaged.
    with folder_for(output) as folder:
        step = folder / "0"
        mean = execute(plan, step, strict=strict, progress=progress)
        file = write_file(step, text, folder / output.name)
        with planned([file]) as converted:
            return execute(
                converted, output, overwrite=overwrite, made_of=mean.sources
            )


def work(
    plan: FilePlan,
    summing: Summing,
    made: Written,
    *,
    share: Share = WHOLE,
    progress: Progress | None = None,
) -> None:
    """Write the arrays of the output, or a share of them.

    Args:
        plan: A `FilePlan`.
        summing: A `Summing` of it.
        made: What is written.
        share: See `Share`.
        progress: See `average_checkpoints`.

    Raises:
        See `average_checkpoints`.
    """
    progress = _of_all(plan, progress)
    for_each(summing.work, summing.arrays, progress, share)
    _carry(plan, made, share)
    for checkpoint in plan.checkpoints:
        checkpoint.check_unchanged()


def _of_all(plan: FilePlan, progress: Progress | None) -> Progress | None:
    """The progress in bytes of all checkpoints, given that in those of one."""
    count = len(plan.checkpoints)
    if progress is None:
        return None
    return lambda done, total: progress(count * done, count * total)


def _carry(plan: FilePlan, output: Written, share: Share) -> None:
    last = plan.last
    carried = {p: last.arrays[p] for p in plan.copied if p not in last.weights}

    def copy(block: Block) -> None:
        data = numpy.empty(block.nbytes, "uint8")
        last.read_into(data.data, block)
        output.write(data.data, block)

    for_each(copy, carried, share=share)
