"""The code of the README and the examples in docstrings run."""

from pathlib import Path

import docstrings
import pytest

README = Path(__file__).parents[3] / "README.md"
pytestmark = pytest.mark.usefixtures("figures")


def python_blocks() -> str:
    """The README's Python, each line at its own line number."""
    lines, inside = [], False
    for line in README.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.startswith("```python") if fence else inside
    return "\n".join(lines)


def test_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python_blocks()
    assert code.count("EMA(") >= 2
    exec(compile(code, "README.md", "exec"), {"__name__": "README"})  # noqa: S102


def test_docstring_examples_run():
    tests = docstrings.examples()
    assert any(map(docstrings.trains, tests.values()))
    assert docstrings.failures(tests) == []
