"""A long training needs no more memory than a short one."""

import resource
from pathlib import Path

import models
import pytest

from keras_wavg import EMA

STATM = Path("/proc/self/statm")


@pytest.mark.skipif(not STATM.exists(), reason="only Linux has /proc")
def test_updates_do_not_leak_memory():
    ema, model = EMA(0.9), models.dense()
    ema.set_model(model)

    def pages_after_updates(count):
        for _ in range(count):
            ema.update()
        return int(STATM.read_text().split()[1])

    before = pages_after_updates(5000)
    grown = (pages_after_updates(10_000) - before) * resource.getpagesize()
    assert grown / 10_000 < 250  # bytes
