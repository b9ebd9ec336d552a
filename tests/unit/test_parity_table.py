"""The table of `benchmarks/parity.py`: what a cell says."""

import numpy
from benchmarks import parity
from benchmarks.parity import Check


def test_a_number_passes_or_stands_beside_the_right_one():
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


def test_less_is_right_too_where_the_check_says_so():
    check = Check("one", lambda number: number, right=1.0, at_most=True)
    assert check.cell(0.5) == "yes"
    assert check.cell(1.1) == "1.1 (1)"


def test_what_a_library_lacks_or_cannot_do_is_told_without_a_crash():
    def fail(_):
        raise InterruptedError

    assert Check("fails", fail).cell(None) == "InterruptedError"
    assert Check("lacks", parity.ask("nothing")).cell(None) == "no"


def test_a_library_that_is_not_installed_is_none():
    assert parity.load("parity_of_nobody", "Nobody", "nobody") is None
