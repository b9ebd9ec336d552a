"""What a greedy soup is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_wavg.files.average_report import AverageReport, table


@dataclass(frozen=True)
class Trial:
    """A checkpoint, tried on its own and then in the soup.

    Args:
        path: `pathlib.Path` of the checkpoint.
        alone: Float, its own score.
        together: Float, the score of the soup with it.
        taken: Boolean, whether it went into the soup.
    """

    path: Path
    alone: float
    together: float
    taken: bool


@dataclass(frozen=True)
class SoupReport:
    """What `greedy_soup` did. Printed, it is a table.

    Args:
        trials: Sequence of `Trial`s, in the order in which they were tried.
        score: Float, of the soup.
        average: `AverageReport` of the output.
    """

    trials: Sequence[Trial]
    score: float
    average: AverageReport

    @property
    def members(self) -> list[Path]:
        """The checkpoints in the soup."""
        return [trial.path for trial in self.trials if trial.taken]

    def __str__(self) -> str:
        rows = [
            (
                str(trial.path),
                f"{trial.alone:.6g}",
                f"{trial.together:.6g}",
                "taken" if trial.taken else "left out",
            )
            for trial in self.trials
        ]
        header = ("checkpoint", "alone", "in the soup", "")
        return (
            f"{table(header, rows)}\n{self.average.output}: soup of "
            f"{len(self.members)} of {len(self.trials)} checkpoints, score "
            f"{self.score:.6g} (best single: {self.trials[0].alone:.6g})"
        )
