"""The examples run from the command line."""

import gzip
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def output_of(example, *options):
    """The printed output of an example."""
    run = subprocess.run(
        [sys.executable, EXAMPLES / example, *options],
        # Several threads of torch are slow if tests share the cores.
        env=os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return run.stdout


def test_digits_prints_both_accuracies_and_scores_its_saved_file():
    lines = output_of("digits.py").splitlines()
    epochs = [line.split() for line in lines if line[:5].strip().isdigit()]
    assert [int(epoch) for epoch, _, _ in epochs] == list(range(1, 16))
    logged, scored = (float(line.split()[-1]) for line in lines[-2:])
    assert logged == scored == max(float(average) for _, _, average in epochs)
    assert logged > 0.97


def write_fashion_mnist(directory, bright=255):
    """Write noise like Fashion-MNIST, with a bright row for each class."""
    rng = numpy.random.default_rng(0)
    for part, count in (("train", 256), ("t10k", 64)):
        labels = rng.integers(0, 10, count).astype("uint8")
        images = rng.integers(0, 99, (count, 28, 28)).astype("uint8")
        images[numpy.arange(count), 2 * labels] = bright
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes(4 + 4 * array.ndim)
            with gzip.open(directory / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())


def test_swa_paper_scores_each_method_and_draws_the_plane(tmp_path):
    write_fashion_mnist(tmp_path)
    options = [
        "--images",
        "256",
        "--epochs",
        "4",
        "--seeds",
        "2",
        "--grid",
        "2",
    ]
    paths = ["--data", tmp_path, "--figure", tmp_path / "plane.png"]
    printed = output_of("swa_paper.py", *options, *paths)
    rows = [line.split("|") for line in printed.splitlines() if "±" in line]
    methods = [row[0].strip() for row in rows]
    assert methods[1:3] == ["SGD", "SWA"]
    assert len(rows) == 6
    assert all(len(row) == 5 for row in rows[1:])
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")


def test_posthoc_ema_finds_the_best_width_and_reproduces_tracked_averages(
    tmp_path,
):
    # Hard to learn, so that the weights do not converge to the same values.
    write_fashion_mnist(tmp_path, bright=60)
    sizes = ["--images", "192", "--batch-size", "32", "--epochs", "20"]
    paths = ["--data", tmp_path, "--figure", tmp_path / "curve.png"]
    printed = output_of("posthoc_ema.py", *sizes, *paths)
    table = [line.split("|") for line in printed.splitlines() if "|" in line]
    rows = {float(row[0]): row[1:] for row in table[2:-1]}
    losses = {width: float(row[0].split()[0]) for width, row in rows.items()}
    best = [width for width, row in rows.items() if "best" in row[-1]]
    assert len(rows) == 15
    assert losses[best[0]] == min(losses.values())
    # The widest includes the first steps, which change the weights the most.
    max_distance = {0.03: 2, 0.14: 0.5, 0.25: 20}
    tracked = {width: row[1:] for width, row in rows.items() if len(row) == 3}
    assert tracked.keys() == max_distance.keys()
    for width, (scores, distance) in tracked.items():
        loss = float(scores.split()[0])
        assert loss == pytest.approx(losses[width], rel=0.03)
        assert float(distance.split()[0]) < max_distance[width]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def tables_in(text):
    """The first number of each cell, by the title of the table and the row."""
    tables = {}
    for line in text.splitlines():
        name, *cells = [cell.strip() for cell in line.split("|")[1:-1]] or [""]
        if cells and "±" not in line and name != "---":
            table = tables.setdefault(name, {})
        elif "±" in line and cells:
            table[name] = [float(cell.split()[0]) for cell in cells]
    return tables


def test_compare_averages_scores_all_averages_of_one_training_run(tmp_path):
    write_fashion_mnist(tmp_path)
    sizes = ["--images", "128", "--epochs", "2", "--seeds", "1"]
    paths = ["--data", tmp_path, "--figure", tmp_path / "changes.png"]
    tasks = ["--tasks", "label noise", "digits"]
    printed = output_of("compare_averages.py", *sizes, *paths, *tasks)
    tables = tables_in(printed)
    assert len(tables) == 4
    for rows in tables.values():
        assert len(rows) == 7
        for accuracy, loss, _, more_accuracy, more_loss, _ in rows.values():
            change = accuracy - rows["raw"][0], loss - rows["raw"][1]
            assert change[0] == pytest.approx(more_accuracy, abs=0.011)
            assert change[1] == pytest.approx(more_loss, abs=0.00011)
    # The mean of one sample is that sample, with measured statistics.
    rows = tables["label noise, constant learning rate"]
    assert rows["`SWA`"] == pytest.approx(rows["raw, `update_bn`"], abs=2e-4)
    assert rows["`EMA`"] != pytest.approx(rows["raw"], abs=2e-4)
    # The raw weights fluctuate at a high learning rate.
    rows = tables["digits, constant learning rate"]
    for name in ("`EMA`", "`SWA`", "`LAWA`", "`PowerEMA`, `sweep`"):
        assert rows[name][0] > 90
        assert rows[name][1] < rows["raw"][1]
    assert (tmp_path / "changes.png").read_bytes().startswith(b"\x89PNG")


def test_mean_teacher_prints_four_accuracies_for_each_seed():
    options = ["--seeds", "1", "--epochs", "3"]
    *_, seed, mean = output_of("mean_teacher.py", *options).splitlines()
    values = [float(value) for value in seed.replace("|", " ").split()[1:]]
    assert len(values) == 4
    assert min(values) > 30
    assert mean.split("|")[1:] == seed.split("|")[1:]


def test_diffusion_samples_with_raw_weights_and_averages(tmp_path):
    write_fashion_mnist(tmp_path)
    sizes = ["--images", "128", "--batch-size", "16", "--epochs", "10"]
    small = ["--units", "64", "--samples", "48", "--sampling-steps", "2"]
    paths = ["--data", tmp_path, "--figure", tmp_path / "samples.png"]
    printed = output_of("diffusion.py", *sizes, *small, "--seeds", "1", *paths)
    table = [line.split("|") for line in printed.splitlines() if "|" in line]
    names, seed, mean = ([cell.strip() for cell in row] for row in table)
    # Ten epochs are too few for the widths 0.02 and 0.25.
    columns = ["raw weights", "width 0.03", "best width", "width 0.19"]
    assert names == ["seed", *columns, "annealed", "best"]
    assert mean == ["mean", *seed[1:-1]]
    assert len({*seed[1:-1]}) > 1
    assert min(map(float, seed[1:-1])) > 0
    assert 0.03 <= float(seed[-1]) <= 0.19
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_fine_tune_scores_raw_weights_and_averages_and_generates_a_text():
    pytest.importorskip("keras_hub", reason="KerasHub is not installed")
    sizes = ["--steps", "16", "--fine-tuning-steps", "8"]
    options = ["--held-out", "64", "--seeds", "1"]
    printed = output_of("fine_tune.py", *sizes, *options)
    rows = [line.split("|")[1:-1] for line in printed.splitlines()[3:-1]]
    losses = {}
    for name, *cells in rows:
        numbers = [tuple(map(float, cell.split("→"))) for cell in cells]
        validation, test, mean = losses[name.strip()] = numbers
        assert test == mean  # of one seed
        assert max(*validation, *test) < math.log(128)  # of random bytes
        assert validation[0] != validation[1]
    assert len(losses) == 5
    kinds = "LoRA", "int8 and LoRA"
    plain, quantized = (losses[f"NumPy, {kind}, `EMA`"][1] for kind in kinds)
    assert plain == pytest.approx(quantized, abs=0.05)
    assert "generated by the last average: 'Return the " in printed


def test_merged_checkpoints_are_scored_during_training():
    pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")
    options = ["--epochs", "6", "--last", "4"]
    lines = output_of("warmup_stable_merge.py", *options).splitlines()
    rows = [line.split() for line in lines if line[:5].strip().isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 7))
    assert float(rows[-1][-1]) > 0.95
    decayed, merged = (line.split() for line in lines[-2:])
    assert float(decayed[-1]) > 0.95
    assert merged[-1] == rows[-1][-2]
