"""Documentation is complete, and what it names exists."""

import doctest
import inspect
import re
from pathlib import Path

import docstrings
import pytest

import keras_wavg
from keras_wavg import coefficients, plots

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "examples" / "README.md",
    ROOT / "tests" / "benchmarks" / "README.md",
]

PUBLIC = {
    f"{home.__name__}.{name}": getattr(home, name)
    for home, names in {
        keras_wavg: set(keras_wavg.__all__) - {"coefficients", "plots"},
        plots: set(plots.__all__)
        - {"LossPlane"},  # a result that users do not create
        coefficients: {"uniform", "ascending", "ema", "decay_emulation"},
    }.items()
    for name in sorted(names)
}


@pytest.mark.usefixtures("figures")
def test_docstring_examples_that_train_nothing_run():
    """Those that train run in `slow/live/test_readme.py`."""
    tests = {
        name: test
        for name, test in docstrings.examples().items()
        if not docstrings.trains(test)
    }
    assert tests
    assert docstrings.failures(tests) == []


def test_every_public_example_is_run():
    shown = {
        f"{public.__module__}.{public.__qualname__}"
        for public in PUBLIC.values()
        if ">>> " in public.__doc__
    }
    assert shown
    assert shown <= docstrings.examples().keys()


def test_a_wrong_example_is_found():
    parser = doctest.DocTestParser()
    tests = {
        name: parser.get_doctest(source, {}, name, None, 0)
        for name, source in {"right": ">>> 1\n1", "wrong": ">>> 1\n2"}.items()
    }
    assert docstrings.failures(tests) == ["wrong"]


def missing_parts(text, signature) -> list[str]:
    """The parts that a docstring of this signature lacks."""
    wanted = [f"{n}:" for n in signature.parameters if n != "self"]
    wanted += ["Args:"] * bool(wanted)
    returned = signature.return_annotation
    if returned not in {None, "None"}:
        wanted.append("Yields:" if "Iterator" in str(returned) else "Returns:")
    return [part for part in wanted if part not in text]


def undocumented_parts(documented) -> list[str]:
    """The parts that the docstring of a class, function or method lacks."""
    signature = inspect.signature(documented)
    if isinstance(documented, type):
        signature = signature.replace(return_annotation=None)
    return missing_parts(inspect.getdoc(documented) or "", signature)


def public_methods(public):
    """The public methods of a class in this package, by name."""
    for method, documented in inspect.getmembers(public, inspect.isroutine):
        home = getattr(documented, "__module__", None) or ""
        hidden = method.startswith(("_", "on_"))
        if home.startswith("keras_wavg") and not hidden:
            yield method, documented


def test_every_public_name_documents_arguments_and_results():
    for name, public in PUBLIC.items():
        assert "Example:" in public.__doc__, name
        assert undocumented_parts(public) == [], name
        for method, documented in public_methods(public):
            assert undocumented_parts(documented) == [], f"{name}.{method}"


def test_missing_parts_of_a_docstring_are_found():
    def documented(self, first, second) -> int: ...

    signature = inspect.signature(documented)
    text = "Do.\n\nArgs:\n    first: Integer."
    assert missing_parts(text, signature) == ["second:", "Returns:"]
    assert missing_parts("", signature) == [
        "first:",
        "second:",
        "Args:",
        "Returns:",
    ]


def test_the_first_page_is_short():
    assert len(README.read_text().splitlines()) <= 250


def anchors(page):
    """The anchors of a page, as GitHub and PyPI name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_between_the_pages_exist(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_test_that_the_pages_name_exists():
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"`(test_\w+)`", text))
    sources = "".join(
        p.read_text() for p in (ROOT / "tests").rglob("test_*.py")
    )
    assert named
    assert {name for name in named if f"def {name}(" not in sources} == set()
