"""An average that several processes make, each a share of the chunks.

They share a folder beside the output, which no one takes for a checkpoint. Each
writes its chunks there, and then a file with their checksums. The one that
finds these files of all writes the metadata, and moves the folder into place.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy

from keras_wavg import arguments, atomic
from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.execution import work
from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.conversion import is_converted
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.orbax.writing import OrbaxOutput
from keras_wavg.files.paths import archive_like, step_of
from keras_wavg.files.remote import is_remote
from keras_wavg.files.reports import described, report_of, source_reports
from keras_wavg.files.streaming import Progress, Share
from keras_wavg.files.summing import Summing

_FINISHING = "finishing"


def checked_share(process: Share) -> Share:
    """The argument `process`."""
    try:
        number, count = process
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`process` must be the number of this process, from 0 on, and how "
            f"many there are. Received: process={process!r}"
        ) from error
    count = arguments.integer("process[1]", count, at_least=1)
    number = arguments.integer("process[0]", number, at_least=0)
    if number >= count:
        raise ValueError(
            "`process[0]` must be less than `process[1]`. Received: "
            f"process={process!r}"
        )
    return number, count


def execute_share(
    plan: FilePlan,
    output: Path,
    process: Share,
    *,
    strict: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AverageReport:
    """Do a share of what was planned. The last process writes the output.

    Args:
        plan: A `FilePlan`.
        output: See `average_checkpoints`.
        process: See `average_checkpoints`.
        strict: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.
        progress: See `average_checkpoints`.

    Returns:
        An `AverageReport`. Only that of the last process has checksums.

    Raises:
        See `average_checkpoints`.
    """
    number, count = checked_share(process)
    if (
        not isinstance(plan.last, OrbaxCheckpoint)
        or is_converted(plan, output)
        or is_remote(output)
    ):
        raise ValueError(
            "`process` is for averages of folders of Orbax in another folder, "
            "of a file system that all processes share. "
            f"Received: process={process!r}, output={str(output)!r}"
        )
    archive_like(plan, output)
    step = step_of(plan, output, overwrite=overwrite)
    folder = step.parent / f"{atomic.PREFIX}_shared-{_key(plan, step, count)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_name(number), _FINISHING):
        (folder / name).unlink(missing_ok=True)
    with OrbaxOutput(folder / step.name, plan.last, plan.arrays) as made:
        summing = Summing(plan, made, strict=strict)
        work(plan, summing, made, share=(number, count), progress=progress)
        _keep(summing, folder / _name(number))
        if not _is_last(folder, count):
            sources = source_reports(plan, [""] * len(plan.checkpoints))
            return described(plan, output, {}, sources, "")
        _take_over(summing, folder, count)
        report = report_of(plan, summing, output, None)
        made.finish(report.provenance())
    atomic.move(folder / step.name, step, overwrite=overwrite)
    shutil.rmtree(folder)
    return report


def _key(plan: FilePlan, step: Path, count: int) -> str:
    """What is the same for all processes of a run, and for no other run."""
    about = [
        step.name,
        count,
        plan.factors.coefficients,
        sorted(plan.averaged),
        sorted(plan.arrays),
        [
            checkpoint.identity
            for checkpoint in plan.checkpoints
            if isinstance(checkpoint, OrbaxCheckpoint)
        ],
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _name(number: int) -> str:
    return f"{number}.npz"


def _keep(summing: Summing, path: Path) -> None:
    written = path.with_suffix(".tmp.npz")
    numpy.savez(
        written,
        made=summing.output_sums,
        read=numpy.stack(summing.source_sums),
        differing=sorted(summing.differing) or numpy.array([], "U1"),
    )
    written.replace(path)


def _is_last(folder: Path, count: int) -> bool:
    """Whether all shares are there, and no other process has seen it."""
    if not all((folder / _name(k)).exists() for k in range(count)):
        return False
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        os.close(os.open(folder / _FINISHING, flags))
    except FileExistsError:
        return False
    return True


def _take_over(summing: Summing, folder: Path, count: int) -> None:
    """Take the checksums of all shares."""
    shares = []
    for number in range(count):
        with numpy.load(folder / _name(number), allow_pickle=False) as share:
            shares.append(dict(share))
    # Each has zeros where the others have theirs.
    summing.output_sums = sum(share["made"] for share in shares)
    summing.source_sums = list(sum(share["read"] for share in shares))
    for share in shares:
        summing.differing.update(map(str, share["differing"]))
