"""The command line, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy
import pytest
import typer.testing
import weights_files

import keras_wavg
from keras_wavg import Profile
from keras_wavg.__main__ import main
from keras_wavg.cli import app


def run(*arguments):
    """The command in this process: starting one takes long."""
    runner = typer.testing.CliRunner()
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    for epoch in range(1, 5):
        arrays = {
            "layers/dense/vars/0": numpy.full((2, 3), epoch, "float32"),
            "optimizer/vars/0": numpy.int64(epoch),
        }
        path = tmp_path / f"{epoch:02d}-{abs(3 - epoch) + 0.5:.3f}.weights.h5"
        weights_files.write(path, arrays)
    return tmp_path


def kernel(path):
    return weights_files.read(path)["layers/dense/vars/0"][0, 0]


def test_files_are_averaged_and_the_output_is_described(folder):
    paths = sorted(folder.iterdir())
    output = folder / "mean.weights.h5"
    result = run("average", *paths[:2], "-o", output)
    assert result.exit_code == 0
    assert kernel(output) == 1.5
    for text in (paths[0].name, "0.5", "mean.weights.h5", "averaged: 1 var"):
        assert text in result.stdout
    assert "dropped: 1 variables (optimizer)" in result.stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--last", 2], 3.5),
        (["--last", 2, "--until", 3], 2.5),
        (["--best", 1], 3),
        (["--best", 1, "--metric", "val_accuracy"], 1),
        (["--last", 4, "--weights", "1,0,0,1"], 2.5),
        (["--last", 4, "--weights", "1,0,0,1", "--no-normalize"], 5),
        (["--last", 4, "--weights", "ascending"], 3),
        (["--last", 2, "--weights", "ema:0.5"], 3 + 2 / 3),
        (["--last", 4, "--weights", "linear"], 2.5),
        (["--last", 1, "--optimizer", "last", "--no-strict"], 4),
    ],
)
def test_checkpoints_of_a_folder_are_chosen_and_weighted(
    options, expected, folder
):
    output = folder / "mean.weights.h5"
    result = run("average", folder, "-o", output, *options)
    assert result.exit_code == 0, result.output
    assert kernel(output) == pytest.approx(expected, rel=1e-6)
    assert "of 4" in result.stderr or "of 3" in result.stderr


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(folder):
    before = sorted(folder.iterdir())
    result = run(
        "average", folder, "--best", 2, "-o", folder / "m.keras", "--dry-run"
    )
    assert result.exit_code == 3  # there is no config to be had
    output = folder / "mean.weights.h5"
    result = run("average", folder, "--best", 2, "-o", output, "--dry-run")
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout
    assert "03-0.500.weights.h5" in result.stdout
    assert sorted(folder.iterdir()) == before


def test_machines_get_json(folder):
    paths = sorted(folder.iterdir())
    output = folder / "mean.weights.h5"
    made = json.loads(run("average", *paths, "-o", output, "--json").stdout)
    assert [s["coefficient"] for s in made["sources"]] == [0.25] * 4
    found = json.loads(run("inspect", output, "--json").stdout)
    assert found["checksum"] == made["checksum"]
    assert found["arrays"]["layers/dense/vars/0"]["shape"] == [2, 3]
    found = json.loads(run("diff", *paths[:2], "--json").stdout)
    assert found["distances"]["layers/dense/vars/0"]["largest"] == 1


def test_a_checksum_of_lists_in_lists_is_shown_as_text(folder):
    path = min(folder.iterdir())
    checksum = "[" * 600 + "]" * 600
    with h5py.File(path, "a") as file:
        text = f'{{"sources": [], "checksum": {checksum}}}'
        file.attrs["keras_wavg"] = text
    result = run("inspect", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["provenance"]["checksum"] == checksum


def test_inspect_shows_variables_and_provenance(folder):
    paths = sorted(folder.iterdir())
    output = folder / "mean.weights.h5"
    run("average", *paths, "-o", output)
    result = run("inspect", output)
    assert result.exit_code == 0
    for text in ("layers/dense/vars/0", "(2, 3)", paths[3].name, "unchanged"):
        assert text in result.stdout


def test_diff_says_by_its_exit_code_whether_weights_are_the_same(folder):
    one, two, *_ = sorted(folder.iterdir())
    assert run("diff", one, one).exit_code == 0
    result = run("diff", one, two)
    assert result.exit_code == 1
    assert "layers/dense/vars/0" in result.stdout
    assert run("diff", one, folder / "missing.weights.h5").exit_code == 3


WRONG = {
    "no output": ["average", "01-2.500.weights.h5"],
    "folder without choice": ["average", ".", "-o", "m.weights.h5"],
    "choice without folder": [
        *("average", "01-2.500.weights.h5", "--last", "1"),
        *("-o", "m.weights.h5"),
    ],
    **{
        f"{option} without folder": [
            *("average", "01-2.500.weights.h5", option, value),
            *("-o", "m.weights.h5"),
        ]
        for option, value in (
            ("--until", "3"),
            ("--pattern", "{epoch}.keras"),
            ("--log", "log.csv"),
        )
    },
    **{
        f"{option} {value}": [
            *("average", ".", "--last", "2", option, value),
            *("-o", "m.weights.h5"),
        ]
        for option, value in (
            ("--last", "0"),
            ("--best", "0"),
            ("--mode", "up"),
            ("--optimizer", "x"),
        )
    },
    "weights": ["average", ".", "--last", "2", "--weights", "x", "-o", "m.h5"],
    "no command": ["mean"],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_has_an_exit_code_of_its_own(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run(*WRONG[name]).exit_code == 2


@pytest.mark.parametrize("option", ["--until", "--pattern", "--log"])
def test_an_option_that_would_do_nothing_is_named(option, folder):
    path = min(folder.iterdir())
    output = folder / "m.weights.h5"
    result = run("average", path, option, 3, "-o", output)
    assert f"{option} needs one folder" in result.stderr


def test_a_value_that_is_refused_is_no_wrong_usage(tmp_path):
    snapshots(tmp_path)
    for options in (["--sigma-rel", 9], [], ["--decay", 2]):
        output = tmp_path / "a.weights.h5"
        result = run("synthesize", tmp_path, "-o", output, *options)
        assert result.exit_code == 3
    result = run("synthesize", tmp_path, "-o", "a.txt", "--sigma-rel", 0.1)
    assert result.exit_code == 3


def test_an_error_is_one_line_that_names_file_and_path(folder):
    paths = sorted(folder.iterdir())
    with h5py.File(paths[1], "a") as file:
        file["layers/dense/vars/0"][0, 0] = numpy.nan
    result = run("average", *paths, "-o", folder / "mean.weights.h5")
    assert result.exit_code == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(paths[1]) in line
    assert "layers/dense/vars/0" in line
    assert "Traceback" not in result.output


def test_names_that_look_like_markup_are_printed_as_they_are(folder):
    path = min(folder.iterdir())
    odd = path.rename(folder / "[bold]1[red].weights.h5")
    result = run("inspect", odd)
    assert result.exit_code == 0
    result = run("average", odd, "-o", folder / "[b]2.weights.h5")
    assert "[bold]1[red].weights.h5" in result.stdout
    assert "[b]2.weights.h5" in result.stdout


def test_names_that_a_terminal_would_obey_are_escaped(folder):
    path = min(folder.iterdir())
    odd = path.rename(folder / "\x1b[2J\n9-0.1.weights.h5")
    for result in (
        run("average", odd, "-o", folder / "a.weights.h5"),
        run("average", folder, "--last", 1, "-o", folder / "b.weights.h5"),
        run("inspect", folder / "a.weights.h5"),
    ):
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert r"\x1b[2J\n9-0.1.weights.h5" in result.output


def imported(names, *arguments):
    """Those of some packages that a command imports."""
    code = (
        "import sys, keras_wavg.cli as cli\n"
        f"try: cli.app({[*map(str, arguments)]})\n"
        f"finally: print({names} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()[-1]


def test_the_command_starts_without_keras(folder):
    path = min(folder.iterdir())
    assert imported({"keras", "h5py"}, "inspect", path) == "set()"


def test_help_is_shown_without_numpy_and_rich(folder):
    packages = {"keras", "h5py", "numpy", "rich"}
    assert imported(packages, "--help") == "set()"
    path = min(folder.iterdir())
    assert imported({"numpy", "rich"}, "inspect", path) == "{'numpy'}"


def test_it_is_a_module_too(folder):
    path = min(folder.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "keras_wavg", "inspect", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "layers/dense/vars/0" in result.stdout
    assert result.stderr == ""


def snapshots(folder):
    """Averages of weights that were their own step, with their profiles."""
    for steps in range(100, 1100, 100):
        for sigma_rel in (0.05, 0.1):
            profile = Profile.power(sigma_rel, steps)
            value = profile.shares @ profile.times
            path = folder / f"sigma_{sigma_rel}-{steps:05}.weights.h5"
            arrays = {"vars/0": numpy.full(2, value)}
            weights_files.write_snapshot(path, arrays, profile)


def test_snapshots_make_an_average_of_another_width(tmp_path):
    snapshots(tmp_path)
    output = tmp_path / "made.weights.h5"
    result = run("synthesize", tmp_path, "--sigma-rel", 0.12, "-o", output)
    assert result.exit_code == 0, result.output
    assert "residual 0." in result.stdout
    target = Profile.power(0.12, 1000)
    (got, _) = weights_files.read(output)["vars/0"]
    assert got == pytest.approx(target.shares @ target.times, abs=2)


def test_a_sweep_goes_as_far_as_the_snapshots(tmp_path):
    (tmp_path / "run").mkdir()
    snapshots(tmp_path / "run")
    sweep = ["synthesize", tmp_path / "run", "-o", tmp_path / "out", "--sweep"]
    result = run(*sweep, "0.002:0.3:15")
    assert result.exit_code == 0, result.output
    first, *_, last = result.stdout.splitlines()
    assert first.endswith("not made, the residual is too large")
    assert last.startswith("sigma_rel 0.2887, residual")  # the plain mean
    made = len(list((tmp_path / "out").iterdir()))
    assert 5 < made == result.stdout.count("weights.h5") < 15
    assert run(*sweep, "0.002:0.003:2").exit_code == 3


def test_a_sweep_makes_many(tmp_path):
    (tmp_path / "run").mkdir()
    snapshots(tmp_path / "run")
    result = run(
        "synthesize", tmp_path / "run", "--sweep", "0.06:0.14:3", "-o", tmp_path
    )
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in tmp_path.glob("*.h5"))
    assert names == [f"sigma_{w}.weights.h5" for w in (0.06, 0.1, 0.14)]
    for wrong in (["0.06"], ["0.1:0.2:0"], ["0.1:0.2:2", "--decay", "0.9"]):
        refused = run("synthesize", tmp_path, "-o", tmp_path, "--sweep", *wrong)
        assert refused.exit_code == 2
    impossible = run(
        "synthesize",
        tmp_path / "run",
        "--decay",
        0.1,
        "-o",
        tmp_path / "a.weights.h5",
    )
    assert impossible.exit_code == 3
    assert "residual" in impossible.stderr


def test_errors_name_options_as_they_are_typed(folder):
    paths = sorted(folder.iterdir())
    output = folder / "mean.weights.h5"
    output.touch()
    errors = [
        run("average", *paths, "-o", output),
        run("average", *paths, "-o", folder / "a.h5"),
        run("average", *paths[:2], "-o", folder / "a.keras"),
        run(
            "average", *paths[:2], "-o", folder / "a.weights.h5", "--include=x"
        ),
        run("average", folder, "-o", folder / "b.weights.h5", "--last", "9"),
    ]
    expected = [
        f"--output must not exist, unless --overwrite. Received: --output '{o}'"
        for o in [output]
    ]
    expected += [
        "--output must end in",
        "no `.keras` among FILES|FOLDER",
        "--include must match the path of at least one variable",
        "FILES|FOLDER must have 9 checkpoints",
    ]
    for result, text in zip(errors, expected, strict=True):
        assert result.exit_code == 3
        assert text in result.stderr
        assert "=True" not in result.stderr


def test_it_tells_its_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (
        0,
        f"keras-wavg {keras_wavg.__version__}\n",
    )


def test_a_choice_among_many_is_told_in_few_lines(tmp_path):
    for epoch in range(1, 301):
        path = tmp_path / f"{epoch:03d}-{epoch / 100:.2f}.weights.h5"
        weights_files.write(path, {"a/vars/0": numpy.ones(1, "float32")})
    options = ("--best", "3", "--until", "200", "--dry-run")
    result = run("average", tmp_path, "-o", tmp_path / "m.weights.h5", *options)
    assert result.exit_code == 0
    assert result.stderr.count("\n") < 10
    assert "left out: 100 (after epoch 200)" in result.stderr
    assert "left out: 197 (not among the lowest val_loss 3)" in result.stderr
    assert result.stdout.count("0.333333") == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize("delay", [0.03, 0.08, 0.15, 0.3])
def test_ctrl_c_ends_it_in_one_line_at_any_moment(delay, tmp_path):
    arrays = {"a/vars/0": numpy.ones(1_000_000, "float32")}
    path = weights_files.write(tmp_path / "a.weights.h5", arrays)
    output = tmp_path / "mean.weights.h5"
    command = [sys.executable, "-m", "keras_wavg", "average"]
    process = subprocess.Popen(
        [*command, *[path] * 100, "-o", output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    names = {file.name for file in tmp_path.iterdir()}
    assert names - {"mean.weights.h5"} == {"a.weights.h5"}
    if process.returncode == 0:
        assert "mean.weights.h5" in names
    elif process.returncode == 130:
        assert error == "interrupted\n"
    else:
        # Before the first line of ours, or after the last, it is Python's.
        assert "keras_wavg/cli" not in error


def test_a_dry_run_of_a_synthesis_tells_the_coefficients(tmp_path):
    (tmp_path / "run").mkdir()
    snapshots(tmp_path / "run")
    files = sorted((tmp_path / "run").iterdir())
    output = tmp_path / "made.weights.h5"
    command = ["synthesize", *files, "-o", output, "--half-life", "150"]
    made = run(*command, "--json")
    report = json.loads(made.stdout)
    output.unlink()
    planned = json.loads(run(*command, "--json", "--dry-run").stdout)
    assert planned["solution"] == report["solution"]
    assert planned["target"] == report["target"]
    shown = run(*command, "--dry-run").stdout
    first = planned["solution"]["coefficients"][0]
    assert f"{first:.6g}" in shown
    assert "condition number" in shown
    assert "nothing was written" in shown
    assert not output.exists()
    widths = ["synthesize", tmp_path / "run", "-o", tmp_path / "new", "--sweep"]
    found = run(*widths, "0.06:0.14:3", "--dry-run", "--json")
    assert [made["sigma_rel"] for made in json.loads(found.stdout)] == [
        pytest.approx(width) for width in (0.06, 0.1, 0.14)
    ]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--half-life", "1.5", "--unit", "epochs", "--steps-per-epoch", "100"],
        ["--half-life", "4800", "--unit", "samples", "--batch-size", "32"],
    ],
    ids=["epochs", "samples"],
)
def test_a_half_life_may_be_told_in_epochs_or_samples(options, tmp_path):
    snapshots(tmp_path)
    command = ["synthesize", tmp_path, "-o", tmp_path / "made.weights.h5"]
    expected = run(*command, "--half-life", "150", "--dry-run").stdout
    assert run(*command, *options, "--dry-run").stdout == expected
    assert run(*command, *options[:-2]).exit_code == 3
    assert run(*command, "--decay", "0.9", *options[2:]).exit_code == 2


@pytest.fixture
def keeps_its_signals():
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    yield
    signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = hook


@pytest.mark.usefixtures("keeps_its_signals")
def test_the_command_ends_with_its_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras-wavg", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("keras-wavg ")

    def interrupted(**_):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            # As Python does to an error while a class is made.
            raise RuntimeError("__set_name__") from error

    monkeypatch.setattr("keras_wavg.cli.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_ends_the_command_where_python_drops_exceptions():
    program = """
import signal, time, weakref
import keras_wavg.__main__, keras_wavg.cli

class Module:
    pass

def app(**_):
    module = Module()
    name = weakref.ref(module, lambda _: signal.raise_signal(signal.SIGINT))
    del module
    time.sleep(30)

keras_wavg.cli.app = app
keras_wavg.__main__.main()
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr == "interrupted\n"
