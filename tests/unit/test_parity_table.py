"""The table of `benchmarks/parity.py`: the text of a cell."""

import numpy
from benchmarks import parity
from benchmarks.parity import Check


def test_a_wrong_number_is_shown_with_the_right_one():
    cells = {
        1.0: "yes",
        1.1: "1.1 (1)",
        0.5: "0.5 (1)",
        numpy.nan: "nan (1)",
        (1.0, 0.5): "1 / 0.5 (1)",
    }
    for received, cell in cells.items():
        check = Check("one", lambda number: number, right=1.0, tolerance=1e-6)
        assert check.cell(received) == cell


def test_with_at_most_a_smaller_number_passes():
    check = Check("one", lambda number: number, right=1.0, at_most=True)
    assert check.cell(0.5) == "yes"
    assert check.cell(1.1) == "1.1 (1)"


def test_a_missing_or_failing_feature_is_shown_without_an_error():
    def fail(_):
        raise InterruptedError

    assert Check("fails", fail).cell(None) == "InterruptedError"
    assert Check("lacks", parity.call("nothing")).cell(None) == "no"


def test_a_library_that_is_not_installed_is_not_loaded():
    assert (
        parity.load("parity_of_a_missing_library", "Nobody", "nobody") is None
    )
