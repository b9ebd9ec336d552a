"""What is written, in a file or in a folder of Orbax."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.orbax.reading import OrbaxCheckpoint
from keras_wavg.files.orbax.writing import OrbaxOutput
from keras_wavg.files.output import Output
from keras_wavg.files.paths import archive_like, refuse_output, step_of
from keras_wavg.files.remote import is_remote, replacing, target_of

Written = Output | OrbaxOutput

_SHARD_SIZE = 5 << 30  # What Keras has in a shard if nobody says.


@contextlib.contextmanager
def opened(
    plan: FilePlan, output: Path, *, overwrite: bool
) -> Iterator[Written]:
    """Context in which an output is written, whole or not at all.

    Args:
        plan: A `FilePlan`.
        output: See `average_checkpoints`.
        overwrite: See `average_checkpoints`.

    Yields:
        An `Output` or an `OrbaxOutput`.

    Raises:
        ValueError: If a checkpoint would be replaced.
        FileExistsError: If there is one and not `overwrite`.
        OSError: If it cannot be written.
    """
    like = archive_like(plan, output)
    if isinstance(plan.last, OrbaxCheckpoint):
        step = step_of(plan, output, overwrite=overwrite)
        with (
            _folder(step.parent),
            replacing(step, overwrite=overwrite) as written,
            OrbaxOutput(written, plan.last, plan.arrays) as folder,
        ):
            yield folder
        return
    with (
        replacing(output, overwrite=overwrite) as written,
        Output(written, plan.structure, like, _shard_size(plan)) as file,
    ):
        for name in file.names:
            # Where a link leads to, its shards are written, too.
            place = target_of(output).with_name(name)
            refuse_output(place, overwrite=overwrite)
        yield file
        if like:
            _check_same(plan, like)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A folder, that is made if it is missing, and removed after an error."""
    is_new = not is_remote(path) and not path.exists()
    if is_new:
        path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # Somebody else has used it.
                path.rmdir()
        raise


def _check_same(plan: FilePlan, like: Path) -> None:
    """Refuse an archive that another one was moved over."""
    for checkpoint in plan.checkpoints:
        if checkpoint.path == like:
            for source in checkpoint.sources:
                source.close()  # so that it is opened again
            checkpoint.check_unchanged()


def _shard_size(plan: FilePlan) -> int:
    sharded = [
        source.size
        for checkpoint in plan.checkpoints
        if checkpoint.path.name.endswith(".weights.json")
        for source in checkpoint.sources
    ]
    return max(sharded, default=_SHARD_SIZE)
