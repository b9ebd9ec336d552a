"""What modules may import, what is public, and what an import loads."""

import ast
import functools
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import keras_wavg
from keras_wavg.schedules import Uniform

PACKAGE = Path(keras_wavg.__file__).parent
BACKENDS = {"jax", "tensorflow", "torch"}

# Shared by the code for training and the code for files.
NEUTRAL = "arguments atomic horizon profile representation schedules system"
# What packages and modules may import, besides those of the same row and the
# standard library. A module of this package must be in a row above. Add a new
# module here, unless it is in a package, which has one entry.
MAY_IMPORT = {
    NEUTRAL: "numpy",
    "model_from_config": "keras numpy",
    "files": f"{NEUTRAL} numpy rich zlib_ng tensorstore upath",
    "sampling": "arguments",
    "keras_private": "keras",
    "warning": "keras",
    "learning_rates": f"{NEUTRAL} keras",
    "clock state": f"{NEUTRAL} keras numpy",
    "included": "arguments keras",
    "target": "included keras",
    "lora": "keras_private keras",
    "backend": "keras_private keras numpy jax tensorflow torch",
    "saving": "lora backend warning keras numpy h5py",
    "swapping": "backend keras_private warning keras",
    "finite": "backend keras",
    "ensemble": "arguments backend keras numpy",
    "averages": f"{NEUTRAL} clock saving backend ensemble keras_private "
    "keras numpy jax tensorflow torch",
    "plan": f"{NEUTRAL} sampling averages included target",
    "raw_weights": "backend swapping warning",
    "batchnorm": "arguments keras_private backend swapping keras numpy",
    "averaged_weights model_average": "warning lora averages backend clock "
    "finite included plan state swapping keras numpy",
    "callbacks": f"{NEUTRAL} warning model_average averaged_weights "
    "swapping included plan raw_weights sampling saving target backend "
    "averages batchnorm ensemble keras numpy",
    "plots": "arguments profile ensemble keras numpy matplotlib",
    "soup": "arguments files batchnorm ensemble",
    "cli": f"{NEUTRAL} __version__ files numpy typer",
    "__main__": "cli",
    "__init__": "horizon profile learning_rates files batchnorm callbacks "
    "plots soup",
}
# These may import the code for training and for files.
FRONT = {"__init__", "__main__", "cli", "soup"}

DOCUMENTED = (ast.ClassDef, ast.FunctionDef)
MOST_LINES_OF_A_FUNCTION = 30
MEDIAN_LINES_OF_A_FUNCTION = 5
MOST_LINES_OF_A_FILE = 200


def sources(package=PACKAGE):
    """The text of each file, by its path in the package."""
    paths = sorted(package.rglob("*.py"))
    return {path.relative_to(package): path.read_text() for path in paths}


def top_level(path):
    """The top-level module or subpackage that a file belongs to."""
    return path.parts[0].removesuffix(".py")


@functools.cache
def imports(source):
    """What a source imports: libraries, parts of this package, relative names.

    Without the standard library.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return {root for name in names if (root := root_of(name))}


def root_of(name):
    """The library or part that has a dotted name; `None` if it is standard."""
    first, *rest = name.split(".")
    if first == "keras_wavg":
        # Some have the name of a standard module: `profile`.
        return rest[0] if rest else first
    return None if first in sys.stdlib_module_names else first or name


def allowed():
    """What each package and module may import, including itself."""
    return {
        name: set(f"{group} {others}".split())
        for group, others in MAY_IMPORT.items()
        for name in group.split()
    }


def forbidden_imports(package=PACKAGE):
    """The forbidden imports of each file; `None` if it has no row."""
    may_import, found = allowed(), {}
    for path, source in sources(package).items():
        if top_level(path) not in may_import:
            found[path.as_posix()] = None
        elif wrong := imports(source) - may_import[top_level(path)]:
            found[path.as_posix()] = wrong
    return found


def test_a_file_imports_only_what_the_table_allows():
    assert forbidden_imports() == {}


def test_the_table_names_every_module_and_no_others():
    assert set(allowed()) == {top_level(path) for path in sources()}


def test_a_row_of_the_table_allows_only_modules_of_rows_above():
    known = set()
    for group, others in MAY_IMPORT.items():
        assert set(others.split()) & set(allowed()) <= known, group
        known |= set(group.split())


def test_a_forbidden_import_is_found(tmp_path):
    faults = {
        "files/new.py": ("def f():\n import keras.ops, os", {"keras"}),
        "files/hdf5/new.py": ("if 1:\n import h5py, ast", {"h5py"}),
        "files/live.py": ("from keras_wavg import clock", {"clock"}),
        "callbacks/new.py": (
            "from keras_wavg.files.file_plan import a",
            {"files"},
        ),
        "averaged_weights.py": ("from torch.nn import Linear", {"torch"}),
        "state.py": ("from keras_wavg import EMA", {"EMA"}),
        "clock.py": ("import keras_wavg", {"keras_wavg"}),
        "backend/new.py": ("from keras_wavg import profile", {"profile"}),
        "plan.py": ("from . import averaged_weights", {"..averaged_weights"}),
        "new.py": ("import math", None),
        "new/__init__.py": ("", None),
    }
    sound = {
        "files/sound.py": "import os, numpy\nfrom keras_wavg import atomic",
        "backend/sound.py": "from jax import numpy, lax",
    }
    texts = sound | {name: source for name, (source, _) in faults.items()}
    for name, text in texts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    expected = {name: wrong for name, (_, wrong) in faults.items()}
    assert forbidden_imports(tmp_path) == expected


def test_a_file_imports_at_most_one_backend():
    for path, source in sources().items():
        assert len(imports(source) & BACKENDS) <= 1, path


def test_code_for_training_and_for_files_are_independent():
    own = set(allowed()) - set(NEUTRAL.split())
    for path, source in sources().items():
        known = imports(source) & own
        if top_level(path) == "files":
            assert known <= {"files"}, path
        elif top_level(path) not in FRONT:
            assert "files" not in known, path


def code_lines(source, node):
    """Lines of a module or function without blanks, comments, docstring."""
    body = node.body[ast.get_docstring(node) is not None :]
    if not body:
        return 0
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(text) and text[0] != "#" for text in map(str.strip, lines))


def lengths(source):
    """Names and line counts of functions."""
    return [
        (node.name, code_lines(source, node))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    ]


def long_functions(source):
    """Names and line counts of functions that are too long."""
    most = MOST_LINES_OF_A_FUNCTION
    return [(name, count) for name, count in lengths(source) if count > most]


def code_lines_of_file(source):
    """Lines of a file without all docstrings."""
    tree = ast.parse(source)
    inside = [n for n in ast.walk(tree) if isinstance(n, DOCUMENTED)]
    docs = sum(len((ast.get_docstring(n) or "").splitlines()) for n in inside)
    return code_lines(source, tree) - docs


def test_no_function_is_long():
    for path, source in sources().items():
        assert long_functions(source) == [], path


def test_the_median_function_is_short():
    counts = [n for source in sources().values() for _, n in lengths(source)]
    assert statistics.median(counts) <= MEDIAN_LINES_OF_A_FUNCTION


def test_no_file_is_long():
    lines = {p: code_lines_of_file(source) for p, source in sources().items()}
    most = MOST_LINES_OF_A_FILE
    assert {p: count for p, count in lines.items() if count > most} == {}


def test_long_functions_and_files_are_found():
    body = [" # comment", "", *(f" x = {n}" for n in range(31))]
    lines = ['"""Doc."""', "def f():", ' """Doc.', ' More."""', *body]
    assert long_functions("\n".join(lines)) == [("f", 31)]
    assert long_functions("\n".join(lines[:-1])) == []
    assert code_lines_of_file("\n".join(lines)) == 32


def test_exactly_the_public_names_are_offered():
    assert dir(keras_wavg) == sorted(keras_wavg.__all__)
    for name in keras_wavg.__all__:
        assert getattr(keras_wavg, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'SMA'"):
        _ = keras_wavg.SMA


def modules_after_importing(*names):
    """The modules that are loaded in a process after it imports some."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_importing_the_package_imports_no_backend():
    heavy = {"keras", "h5py", "numpy", *BACKENDS}
    assert not heavy & modules_after_importing("keras_wavg")


def test_saved_weights_need_neither_keras_nor_h5py_nor_a_backend():
    saved = [
        ".".join(("keras_wavg", *path.with_suffix("").parts))
        for path in sources()
        if top_level(path) in {"files", "soup", "cli"}
    ]
    found = modules_after_importing(*saved)
    assert set(saved) <= found
    assert not {"keras", "h5py", *BACKENDS} & found


def test_an_unsupported_backend_is_refused(monkeypatch):
    from keras_wavg.averages.scheduled import Scheduled

    monkeypatch.setattr("keras.config.backend", lambda: "numpy")
    with pytest.raises(NotImplementedError, match="KERAS_BACKEND"):
        Scheduled((Uniform(),)).accumulator([])
