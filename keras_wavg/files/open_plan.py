"""Opens checkpoints and plans their average."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from keras_wavg import arguments
from keras_wavg.arguments import Include
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.file_plan import FilePlan, make_plan
from keras_wavg.files.orbax.conversion import separate_config
from keras_wavg.files.paths import Paths, checkpoint_paths
from keras_wavg.files.scaled_coefficients import scaled_coefficients


@contextlib.contextmanager
def open_plan(
    filepaths: Paths,
    *,
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    strict: bool = True,
    include: Include = None,
    optimizer: str = "drop",
) -> Iterator[FilePlan]:
    """Context in which checkpoints are open and their average is planned.

    Args: See `average_checkpoints`.

    Yields:
        A `FilePlan`.

    Raises:
        ValueError: If the checkpoints cannot be averaged.
    """
    paths, weights, config_of = separate_config(
        checkpoint_paths(filepaths), weights
    )
    coefficients = scaled_coefficients(weights, len(paths), normalize=normalize)
    if optimizer not in {"drop", "last"}:
        raise ValueError(
            "`optimizer` must be 'drop' or 'last'. Received: "
            f"optimizer={optimizer!r}"
        )
    with contextlib.ExitStack() as stack:
        opener = CheckpointOpener()
        checkpoints = [stack.enter_context(opener.open(p)) for p in paths]
        plan = make_plan(
            checkpoints,
            coefficients,
            strict=strict,
            optimizer=optimizer,
            include=arguments.include(include),
        )
        yield replace(plan, config_of=config_of)
