"""The examples in the docstrings of the package."""

import doctest
import importlib
from pathlib import Path

import keras_wavg

PACKAGE = Path(keras_wavg.__file__).parent


def examples() -> dict[str, doctest.DocTest]:
    """All examples, by the name of the object that they document."""
    finder = doctest.DocTestFinder()
    return {
        test.name: test
        for path in sorted(PACKAGE.rglob("*.py"))
        # A module without examples may need a backend that is not installed.
        if ">>> " in path.read_text()
        for test in finder.find(_module(path))
        if test.examples
    }


def trains(test: doctest.DocTest) -> bool:
    """Whether an example fits a model."""
    return any(".fit(" in example.source for example in test.examples)


def failures(tests: dict[str, doctest.DocTest]) -> list[str]:
    """Run examples, print their errors, and return those that failed."""
    runner = doctest.DocTestRunner()
    return [name for name, test in tests.items() if runner.run(test).failed]


def _module(path: Path) -> object:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return importlib.import_module(".".join(parts))
