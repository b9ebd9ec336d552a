"""The table of `benchmarks/parity.py`: our column, and a failing check."""

import pytest
from benchmarks.parity import CHECKS
from parity_keras_wavg import KerasWavg


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.sentence)
def test_this_package_passes_every_check(check):
    assert check.cell(KerasWavg()) == "yes"


class Late(KerasWavg):
    """An average that misses the last step."""

    def follow(self, samples, *arguments, **options):
        return super().follow(samples[:-1], *arguments, **options)


def test_an_average_that_misses_a_step_is_reported_with_its_error():
    cell = CHECKS[0].cell(Late())
    assert cell.endswith("(0)")
    assert 0.01 < float(cell.split()[0]) < 1
