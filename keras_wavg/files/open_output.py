"""Opens the output, an HDF5 checkpoint or an Orbax checkpoint."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_wavg.files.file_plan import FilePlan
from keras_wavg.files.hdf5_output import HDF5Output
from keras_wavg.files.orbax.orbax_checkpoint import OrbaxCheckpoint
from keras_wavg.files.orbax.orbax_output import OrbaxOutput
from keras_wavg.files.paths import check_output, config_archive, step_to_write
from keras_wavg.files.remote import is_remote, replacing, target_of

CheckpointOutput = HDF5Output | OrbaxOutput

_SHARD_SIZE = 5 << 30  # the default of Keras


@contextlib.contextmanager
def open_output(
    plan: FilePlan, output: Path, *, overwrite: bool
) -> Iterator[CheckpointOutput]:
    """Context that writes an output atomically.

    Args:
        plan: A `FilePlan`.
        output: `pathlib.Path` of the output.
        overwrite: Boolean, whether to replace an existing checkpoint.

    Yields:
        A `CheckpointOutput`.

    Raises:
        ValueError: If the output would replace a checkpoint of the plan.
        FileExistsError: If the output exists and `overwrite` is false.
        OSError: If it cannot be written.
    """
    archive = config_archive(plan, output)
    if isinstance(plan.last, OrbaxCheckpoint):
        step = step_to_write(plan, output, overwrite=overwrite)
        with (
            _directory(step.parent),
            replacing(step, overwrite=overwrite) as temporary,
            OrbaxOutput(temporary, plan.last, plan.arrays) as directory,
        ):
            yield directory
        return
    with (
        replacing(output, overwrite=overwrite) as temporary,
        HDF5Output(
            temporary, plan.structure, archive, _shard_size(plan)
        ) as file,
    ):
        for name in file.names:
            # Shards are written beside the target of a link.
            check_output(target_of(output).with_name(name), overwrite=overwrite)
        yield file
        if archive:
            _check_same(plan, archive)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Context with a directory. It is removed on an error if it is new."""
    is_new = not is_remote(path) and not path.exists()
    if is_new:
        path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            # Another process may have written to it.
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _check_same(plan: FilePlan, archive: Path) -> None:
    """Check that the archive was not replaced after it was opened."""
    for checkpoint in plan.checkpoints:
        if checkpoint.path == archive:
            for file in checkpoint.files:
                file.close()  # so that the check opens the path again
            checkpoint.check_unchanged()


def _shard_size(plan: FilePlan) -> int:
    sizes = [
        file.size
        for checkpoint in plan.checkpoints
        if checkpoint.path.name.endswith(".weights.json")
        for file in checkpoint.files
    ]
    return max(sizes, default=_SHARD_SIZE)
