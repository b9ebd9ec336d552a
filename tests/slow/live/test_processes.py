"""Two real processes that train one model with DistributedDataParallel."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

SCRIPT = Path(__file__).parents[2] / "replica.py"


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="how torch distributes"
)
def test_each_rank_averages_its_own_and_all_end_equal(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    ends = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for end in ends:
        assert end["error"] < 1e-6
        assert max(end["means"]) < 1e-6
        assert end["resumed"]
    first, second = (end["averages"] for end in ends)
    assert first.keys() == second.keys()
    differing = {path for path in first if first[path] != second[path]}
    # DistributedDataParallel leaves moving statistics to each rank.
    assert {path.split("/")[-1] for path in differing} == {
        "moving_mean",
        "moving_variance",
    }
