"""Reads a metric from the file of a `CSVLogger`."""

import csv
from pathlib import Path

from keras_wavg.files.error_text import brief


def read_metric(path: Path, monitor: str) -> dict[int, float]:
    """Read the values of a metric, by epoch.

    Args:
        path: `pathlib.Path` of the file.
        monitor: String, the name of the metric.

    Returns:
        Dict from epochs, which start at 1 as in file names, to floats. Epochs
        without a number are missing.

    Raises:
        ValueError: If it is not a file of `CSVLogger`, or lacks the metric.
        OSError: If the file cannot be read.
    """
    received = f"Received: csv_log={str(path)!r}"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"`csv_log` must be a file of `CSVLogger`. {received}: {error}"
        ) from error
    columns = list(rows[0]) if rows else []
    if monitor not in columns or "epoch" not in columns:
        raise ValueError(
            f"`csv_log` must have the columns `epoch` and `{monitor}`. "
            f"{received}, with {brief(str(columns))}"
        )
    values = {}
    for number, row in enumerate(rows, start=2):
        try:
            epoch = int(row["epoch"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`csv_log` must have an integer `epoch` in each row. "
                f"{received}, row {number}: {brief(str(row))}"
            ) from error
        values[epoch + 1] = _float(row[monitor])
    return {e: value for e, value in values.items() if value is not None}


def _float(text: str) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
