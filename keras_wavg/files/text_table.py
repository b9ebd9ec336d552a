"""Tables of text, for reports."""

from collections.abc import Sequence

from keras_wavg.files.error_text import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a table, with the first column aligned to the left.

    rich would take ten seconds for 20,000 rows.
    """
    cells = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    line = "-" * (sum(widths) + 2 * len(widths) - 2)
    first, *others = ["  ".join(_aligned(row, widths)) for row in cells]
    return "\n".join(text.rstrip() for text in (first, line, *others))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [
        first[0].ljust(first[1]),
        *(text.rjust(width) for text, width in others),
    ]
