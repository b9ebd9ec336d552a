"""The code in the README pages and the examples in docstrings run."""

from pathlib import Path

import docstrings
import pytest

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md"]
pytestmark = pytest.mark.usefixtures("figures")


def python_blocks(page: Path) -> str:
    """The Python of a page, each line at its own line number."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line.startswith("```python") if fence else inside
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python_blocks(page)
    assert code.count("EMA(") >= 2
    exec(compile(code, page.name, "exec"), {"__name__": "README"})  # noqa: S102


def test_docstring_examples_run():
    tests = docstrings.examples()
    assert any(map(docstrings.trains, tests.values()))
    assert docstrings.failures(tests) == []
