"""The README is true: its code runs, and the tests that it names exist."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import keras_wavg
from keras_wavg import coefficients, plots

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def python_blocks() -> str:
    """The README's Python, each line at its own line number."""
    lines, inside = [], False
    for line in README.splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.startswith("```python") if fence else inside
    return "\n".join(lines)


def test_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python_blocks()
    assert code.count("EMA(") >= 2
    exec(compile(code, "README.md", "exec"), {"__name__": "README"})  # noqa: S102


@pytest.mark.parametrize(
    "room",
    [
        "schedules",
        "learning_rates",
        "batchnorm.measurement",
        "callbacks.ema",
        "callbacks.swa",
        "callbacks.bema",
        "callbacks.evaluator",
        "callbacks.power_ema",
        "callbacks.lawa",
        "callbacks.swag",
        "callbacks.fge",
        "soup.greedy",
        "files.average",
        "files.checkpoint",
        "files.coefficients",
        "files.inspection",
        "files.numbers",
        "horizon",
        "plots.contours",
        "plots.history",
        "plots.plane",
        "plots.profiles",
        "profile",
        "files.select",
        "files.hdf5.attributes",
        "files.hdf5.datatypes",
    ],
)
@pytest.mark.usefixtures("figures")
def test_docstring_examples_run(room):
    module = importlib.import_module(f"keras_wavg.{room}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


PUBLIC = {
    f"{home.__name__}.{name}": getattr(home, name)
    for home, names in {
        keras_wavg: set(keras_wavg.__all__) - {"coefficients", "plots"},
        plots: set(plots.__all__) - {"LossPlane"},  # a result, made by none
        coefficients: {"uniform", "ascending", "ema", "decay_emulation"},
    }.items()
    for name in sorted(names)
}


def lacking(documented) -> list[str]:
    """What a docstring of this signature should have and does not."""
    text = inspect.getdoc(documented) or ""
    signature = inspect.signature(documented)
    wanted = [f"{n}:" for n in signature.parameters if n != "self"]
    wanted += ["Args:"] * bool(wanted)
    returned = signature.return_annotation
    if not isinstance(documented, type) and returned not in {None, "None"}:
        wanted.append("Yields:" if "Iterator" in str(returned) else "Returns:")
    return [part for part in wanted if part not in text]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_tells_what_it_takes_and_gives(name):
    public = PUBLIC[name]
    assert "Example:" in public.__doc__
    assert lacking(public) == []
    for method, _ in inspect.getmembers(public, inspect.isroutine):
        documented = getattr(public, method)
        home = getattr(documented, "__module__", None) or ""
        hidden = method.startswith(("_", "on_"))
        if home.startswith("keras_wavg") and not hidden:
            assert lacking(documented) == [], method


def test_every_test_that_the_readme_names_exists():
    named = set(re.findall(r"`(test_\w+)`", README))
    sources = "".join(
        p.read_text() for p in (ROOT / "tests").rglob("test_*.py")
    )
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()
