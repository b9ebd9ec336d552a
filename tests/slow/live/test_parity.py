"""The table of `benchmarks/parity.py`: our column, and that checks can fail."""

import numpy
import pytest
from benchmarks import parity
from benchmarks.parity import CHECKS, Check
from parity_ours import Ours

DEFINITION = CHECKS[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.sentence)
def test_every_check_passes_here(check):
    assert check.cell(Ours()) == "yes"


class Late(Ours):
    """Misses the last step."""

    def follow(self, samples, *arguments, **options):
        return super().follow(samples[:-1], *arguments, **options)


def test_an_average_that_misses_a_step_is_told_with_its_error():
    cell = DEFINITION.cell(Late())
    assert cell.endswith("(0)")
    assert 0.01 < float(cell.split()[0]) < 1


@pytest.mark.parametrize(
    ("received", "cell"),
    [
        (1.0, "yes"),
        (1.1, "1.1 (1)"),
        (numpy.nan, "nan (1)"),
        ((1.0, 0.5), "1 / 0.5 (1)"),
    ],
)
def test_a_number_passes_or_stands_beside_the_right_one(received, cell):
    check = Check("one", lambda _: received, right=1.0, tolerance=1e-6)
    assert check.cell(None) == cell


def test_what_a_library_lacks_or_cannot_do_is_told_without_a_crash():
    def fail(_):
        raise InterruptedError

    assert Check("fails", fail).cell(None) == "InterruptedError"
    assert Check("lacks", parity.ask("nothing")).cell(None) == "no"


def test_a_library_that_is_not_installed_is_none():
    assert parity.load("parity_of_nobody", "Nobody", "nobody") is None
