"""What a callback averages, how, and when: its arguments, once checked."""

from dataclasses import dataclass

from keras_wavg.arguments import Include
from keras_wavg.averages.base import Method
from keras_wavg.sampling import Sampling


@dataclass(frozen=True)
class Plan:
    """What a callback asks of its average, for any model.

    Args:
        name: String, by which the average is found again in a file.
        method: A `Method`.
        sampling: A `Sampling`.
        include: See `keras_wavg.arguments.Include`.
        overwrite_every: Integer, the optimizer steps from one writing of the
            average into the trained weights to the next, or `None`.
    """

    name: str
    method: Method
    sampling: Sampling
    include: Include = None
    overwrite_every: int | None = None
