"""The table of `benchmarks/parity.py`: our column, and a check that fails."""

import pytest
from benchmarks.parity import CHECKS
from parity_ours import Ours


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.sentence)
def test_every_check_passes_here(check):
    assert check.cell(Ours()) == "yes"


class Late(Ours):
    """Misses the last step."""

    def follow(self, samples, *arguments, **options):
        return super().follow(samples[:-1], *arguments, **options)


def test_an_average_that_misses_a_step_is_told_with_its_error():
    cell = CHECKS[0].cell(Late())
    assert cell.endswith("(0)")
    assert 0.01 < float(cell.split()[0]) < 1
