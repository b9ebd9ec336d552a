"""The command line."""

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
    """Run a command in this process, as starting another one takes long."""
    runner = typer.testing.CliRunner()
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def directory(tmp_path):
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


def test_files_are_averaged_and_a_report_is_printed(directory):
    paths = sorted(directory.iterdir())
    output = directory / "mean.weights.h5"
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
        (["--last", 2, "--until-epoch", 3], 2.5),
        (["--best", 1], 3),
        (["--best", 1, "--monitor", "val_accuracy"], 1),
        (["--last", 4, "--weights", "1,0,0,1"], 2.5),
        (["--last", 4, "--weights", "1,0,0,1", "--no-normalize"], 5),
        (["--last", 4, "--weights", "ascending"], 3),
        (["--last", 2, "--weights", "ema:0.5"], 3 + 2 / 3),
        (["--last", 4, "--weights", "linear"], 2.5),
        (["--last", 1, "--optimizer", "last", "--no-strict"], 4),
    ],
)
def test_checkpoints_of_a_directory_are_selected_and_weighted(
    options, expected, directory
):
    output = directory / "mean.weights.h5"
    result = run("average", directory, "-o", output, *options)
    assert result.exit_code == 0, result.output
    assert kernel(output) == pytest.approx(expected, rel=1e-6)
    assert "of 4" in result.stderr or "of 3" in result.stderr


def test_a_dry_run_prints_the_report_and_writes_nothing(directory):
    before = sorted(directory.iterdir())
    result = run(
        "average",
        directory,
        "--best",
        2,
        "-o",
        directory / "m.keras",
        "--dry-run",
    )
    assert result.exit_code == 3  # No file has a config.
    output = directory / "mean.weights.h5"
    result = run("average", directory, "--best", 2, "-o", output, "--dry-run")
    assert result.exit_code == 0
    assert "nothing was written" in result.stdout
    assert "03-0.500.weights.h5" in result.stdout
    assert sorted(directory.iterdir()) == before


def test_results_are_printed_as_json(directory):
    paths = sorted(directory.iterdir())
    output = directory / "mean.weights.h5"
    made = json.loads(run("average", *paths, "-o", output, "--json").stdout)
    assert [s["coefficient"] for s in made["sources"]] == [0.25] * 4
    found = json.loads(run("inspect", output, "--json").stdout)
    assert found["checksum"] == made["checksum"]
    assert found["arrays"]["layers/dense/vars/0"]["shape"] == [2, 3]
    found = json.loads(run("diff", *paths[:2], "--json").stdout)
    assert found["distances"]["layers/dense/vars/0"]["largest"] == 1


def test_a_checksum_of_nested_lists_is_shown_as_text(directory):
    path = min(directory.iterdir())
    checksum = "[" * 600 + "]" * 600
    with h5py.File(path, "a") as file:
        text = f'{{"sources": [], "checksum": {checksum}}}'
        file.attrs["keras_wavg"] = text
    result = run("inspect", path, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["provenance"]["checksum"] == checksum


def test_inspect_shows_variables_and_provenance(directory):
    paths = sorted(directory.iterdir())
    output = directory / "mean.weights.h5"
    run("average", *paths, "-o", output)
    result = run("inspect", output)
    assert result.exit_code == 0
    for text in ("layers/dense/vars/0", "(2, 3)", paths[3].name, "unchanged"):
        assert text in result.stdout


def test_the_exit_code_of_diff_depends_on_the_weights(directory):
    one, two, *_ = sorted(directory.iterdir())
    assert run("diff", one, one).exit_code == 0
    result = run("diff", one, two)
    assert result.exit_code == 1
    assert "layers/dense/vars/0" in result.stdout
    assert run("diff", one, directory / "missing.weights.h5").exit_code == 3


WRONG = {
    "no output": ["average", "01-2.500.weights.h5"],
    "directory without selection": ["average", ".", "-o", "m.weights.h5"],
    "selection without directory": [
        *("average", "01-2.500.weights.h5", "--last", "1"),
        *("-o", "m.weights.h5"),
    ],
    **{
        f"{option} without directory": [
            *("average", "01-2.500.weights.h5", option, value),
            *("-o", "m.weights.h5"),
        ]
        for option, value in (
            ("--until-epoch", "3"),
            ("--pattern", "{epoch}.keras"),
            ("--csv-log", "log.csv"),
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
def test_wrong_usage_ends_with_exit_code_2(name, directory, monkeypatch):
    monkeypatch.chdir(directory)
    assert run(*WRONG[name]).exit_code == 2


@pytest.mark.parametrize("option", ["--until-epoch", "--pattern", "--csv-log"])
def test_an_option_without_effect_is_refused(option, directory):
    path = min(directory.iterdir())
    output = directory / "m.weights.h5"
    result = run("average", path, option, 3, "-o", output)
    assert f"{option} needs one directory" in result.stderr


def test_an_invalid_value_ends_with_exit_code_3(tmp_path):
    snapshots(tmp_path)
    for options in (["--sigma-rel", 9], [], ["--decay", 2]):
        output = tmp_path / "a.weights.h5"
        result = run("synthesize", tmp_path, "-o", output, *options)
        assert result.exit_code == 3
    result = run("synthesize", tmp_path, "-o", "a.txt", "--sigma-rel", 0.1)
    assert result.exit_code == 3


def test_an_error_is_one_line_with_the_file_and_the_variable(directory):
    paths = sorted(directory.iterdir())
    with h5py.File(paths[1], "a") as file:
        file["layers/dense/vars/0"][0, 0] = numpy.nan
    result = run("average", *paths, "-o", directory / "mean.weights.h5")
    assert result.exit_code == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(paths[1]) in line
    assert "layers/dense/vars/0" in line
    assert "Traceback" not in result.output


def test_names_that_look_like_markup_are_not_changed(directory):
    path = min(directory.iterdir())
    odd = path.rename(directory / "[bold]1[red].weights.h5")
    result = run("inspect", odd)
    assert result.exit_code == 0
    result = run("average", odd, "-o", directory / "[b]2.weights.h5")
    assert "[bold]1[red].weights.h5" in result.stdout
    assert "[b]2.weights.h5" in result.stdout


def test_control_characters_in_names_are_escaped(directory):
    path = min(directory.iterdir())
    odd = path.rename(directory / "\x1b[2J\n9-0.1.weights.h5")
    for result in (
        run("average", odd, "-o", directory / "a.weights.h5"),
        run(
            "average", directory, "--last", 1, "-o", directory / "b.weights.h5"
        ),
        run("inspect", directory / "a.weights.h5"),
    ):
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output
        assert r"\x1b[2J\n9-0.1.weights.h5" in result.output


def imported(names, *arguments):
    """The packages in `names` that a command imports."""
    code = (
        "import sys, keras_wavg.cli as cli\n"
        f"try: cli.app({[*map(str, arguments)]})\n"
        f"finally: print({names} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()[-1]


def test_the_command_starts_without_keras(directory):
    path = min(directory.iterdir())
    assert imported({"keras", "h5py"}, "inspect", path) == "set()"


def test_help_imports_neither_numpy_nor_rich(directory):
    packages = {"keras", "h5py", "numpy", "rich"}
    assert imported(packages, "--help") == "set()"
    path = min(directory.iterdir())
    assert imported({"numpy", "rich"}, "inspect", path) == "{'numpy'}"


def test_the_package_can_be_run_as_a_module(directory):
    path = min(directory.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "keras_wavg", "inspect", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "layers/dense/vars/0" in result.stdout
    assert result.stderr == ""


def snapshots(directory):
    """Write averages of weights that equal the step, with their profiles."""
    for steps in range(100, 1100, 100):
        for sigma_rel in (0.05, 0.1):
            profile = Profile.power(sigma_rel, steps)
            value = profile.coefficients @ profile.times
            path = directory / f"sigma_{sigma_rel}-{steps:05}.weights.h5"
            arrays = {"vars/0": numpy.full(2, value)}
            weights_files.write_snapshot(path, arrays, profile)


def test_an_average_of_another_width_is_synthesized(tmp_path):
    snapshots(tmp_path)
    output = tmp_path / "made.weights.h5"
    result = run("synthesize", tmp_path, "--sigma-rel", 0.12, "-o", output)
    assert result.exit_code == 0, result.output
    assert "residual 0." in result.stdout
    target = Profile.power(0.12, 1000)
    (got, _) = weights_files.read(output)["vars/0"]
    assert got == pytest.approx(target.coefficients @ target.times, abs=2)


def test_a_sweep_skips_widths_with_a_large_residual(tmp_path):
    (tmp_path / "run").mkdir()
    snapshots(tmp_path / "run")
    sweep = ["synthesize", tmp_path / "run", "-o", tmp_path / "out", "--sweep"]
    result = run(*sweep, "0.002:0.3:15")
    assert result.exit_code == 0, result.output
    first, *_, last = result.stdout.splitlines()
    assert first.endswith("not written, the residual is too large")
    assert last.startswith(
        "sigma_rel 0.2887, residual"
    )  # the equal-weight mean
    made = len(list((tmp_path / "out").iterdir()))
    assert 5 < made == result.stdout.count("weights.h5") < 15
    assert run(*sweep, "0.002:0.003:2").exit_code == 3


def test_a_sweep_writes_a_file_for_each_width(tmp_path):
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


def test_errors_name_the_options(directory):
    paths = sorted(directory.iterdir())
    output, other = (directory / f"{name}.weights.h5" for name in ("m", "a"))
    output.touch()
    errors = [
        run("average", *paths, "-o", output),
        run("average", *paths, "-o", directory / "a.h5"),
        run("average", *paths[:2], "-o", directory / "a.keras"),
        run("average", *paths[:2], "-o", other, "--include=x"),
        run("average", directory, "-o", other, "--last", "9"),
    ]
    expected = [
        f"--output must not exist, unless --overwrite. Received: --output '{o}'"
        for o in [output]
    ]
    expected += [
        "--output must end in",
        "no `.keras` file in FILES|DIRECTORY",
        "--include must match the path of at least one variable",
        "FILES|DIRECTORY must have 9 checkpoints",
    ]
    for result, text in zip(errors, expected, strict=True):
        assert result.exit_code == 3
        assert text in result.stderr
        assert "=True" not in result.stderr


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (
        0,
        f"keras-wavg {keras_wavg.__version__}\n",
    )


def test_a_selection_from_many_is_printed_in_few_lines(tmp_path):
    for epoch in range(1, 301):
        path = tmp_path / f"{epoch:03d}-{epoch / 100:.2f}.weights.h5"
        weights_files.write(path, {"a/vars/0": numpy.ones(1, "float32")})
    options = ("--best", "3", "--until-epoch", "200", "--dry-run")
    result = run("average", tmp_path, "-o", tmp_path / "m.weights.h5", *options)
    assert result.exit_code == 0
    assert result.stderr.count("\n") < 10
    assert "excluded: 100 (after epoch 200)" in result.stderr
    expected = "excluded: 197 (not among the 3 with the lowest val_loss)"
    assert expected in result.stderr
    assert result.stdout.count("0.333333") == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize("delay", [0.03, 0.08, 0.15, 0.3])
def test_ctrl_c_ends_the_command_with_one_line_at_any_time(delay, tmp_path):
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
        # Before the first line of the library, or after the last, Python
        # prints the error.
        assert "keras_wavg/cli" not in error


def test_a_dry_run_of_synthesize_prints_the_coefficients(tmp_path):
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
def test_a_half_life_may_be_in_epochs_or_samples(options, tmp_path):
    snapshots(tmp_path)
    command = ["synthesize", tmp_path, "-o", tmp_path / "made.weights.h5"]
    expected = run(*command, "--half-life", "150", "--dry-run").stdout
    assert run(*command, *options, "--dry-run").stdout == expected
    assert run(*command, *options[:-2]).exit_code == 3
    assert run(*command, "--decay", "0.9", *options[2:]).exit_code == 2


@pytest.fixture
def restored_signals():
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    yield
    signal.signal(signal.SIGINT, handler)
    sys.unraisablehook = hook


@pytest.mark.usefixtures("restored_signals")
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
            # As Python does during the creation of a class.
            raise RuntimeError("__set_name__") from error

    monkeypatch.setattr("keras_wavg.cli.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_ends_the_command_where_python_ignores_exceptions():
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
