"""The report of a greedy soup."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_wavg.files.average_report import AverageReport
from keras_wavg.files.text_table import table


@dataclass(frozen=True)
class Trial:
    """A checkpoint and its scores.

    Args:
        path: `pathlib.Path` of the checkpoint.
        score: Float, its score alone.
        soup_score: Float, the score of the soup with it.
        added: Boolean, whether it was added to the soup.
    """

    path: Path
    score: float
    soup_score: float
    added: bool


@dataclass(frozen=True)
class SoupReport:
    """The result of `greedy_soup`. `str` of it is a table.

    Args:
        trials: Sequence of `Trial`s, the best checkpoint first.
        score: Float, the score of the soup.
        average: `AverageReport` of the output.
    """

    trials: Sequence[Trial]
    score: float
    average: AverageReport

    @property
    def members(self) -> list[Path]:
        """The checkpoints in the soup."""
        return [trial.path for trial in self.trials if trial.added]

    def __repr__(self) -> str:
        return (
            f"SoupReport(output={str(self.average.output)!r}, "
            f"members={len(self.members)}, trials={len(self.trials)}, "
            f"score={self.score:.6g})"
        )

    def __str__(self) -> str:
        rows = [
            (
                str(trial.path),
                f"{trial.score:.6g}",
                f"{trial.soup_score:.6g}",
                "yes" if trial.added else "no",
            )
            for trial in self.trials
        ]
        header = ("checkpoint", "score", "soup score", "added")
        return (
            f"{table(header, rows)}\n{self.average.output}: soup of "
            f"{len(self.members)} of {len(self.trials)} checkpoints, score "
            f"{self.score:.6g} (best checkpoint: {self.trials[0].score:.6g})"
        )
