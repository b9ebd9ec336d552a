"""The metrics of each epoch, from a file of Keras' `CSVLogger`."""

import csv
from pathlib import Path

from keras_wavg.files.source import brief


def logged(path: Path, metric: str) -> dict[int, float]:
    """A metric by epoch, which counts from 1 on, as in the names of files.

    Args:
        path: `pathlib.Path` of the file.
        metric: String, the name of a column.

    Returns:
        Dict from integers to floats, without epochs that have no number.

    Raises:
        ValueError: If it is not such a file.
        OSError: If it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            "`log` must be a file of `CSVLogger`. Received: "
            f"log={str(path)!r}: {error}"
        ) from error
    columns = list(rows[0]) if rows else []
    if metric not in columns or "epoch" not in columns:
        raise ValueError(
            f"`log` must have the columns `epoch` and `{metric}`. Received: "
            f"log={str(path)!r}, with {brief(str(columns))}"
        )
    values = {}
    for number, row in enumerate(rows, start=2):
        try:
            epoch = int(row["epoch"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`log` must have an integer `epoch` in each row. Received: "
                f"log={str(path)!r}, row {number}: {brief(str(row))}"
            ) from error
        values[epoch + 1] = _float(row[metric])
    return {e: value for e, value in values.items() if value is not None}


def _float(text: str) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
