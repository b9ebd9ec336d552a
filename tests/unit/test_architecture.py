"""Who may import whom, what is public, and what an import brings along."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keras_wavg
from keras_wavg.schedules import Uniform

PACKAGE = Path(keras_wavg.__file__).parent
ROOMS = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

DOCUMENTED = (ast.ClassDef, ast.FunctionDef)

# A room may import what stands here, and the standard library.
MAY_IMPORT = {
    "__init__.py": {
        "keras_wavg.batchnorm",
        "keras_wavg.callbacks.bema",
        "keras_wavg.callbacks.ema",
        "keras_wavg.callbacks.evaluator",
        "keras_wavg.callbacks.fge",
        "keras_wavg.callbacks.lawa",
        "keras_wavg.callbacks.lookahead",
        "keras_wavg.callbacks.power_ema",
        "keras_wavg.callbacks.swa",
        "keras_wavg.callbacks.swag",
        "keras_wavg.files.average",
        "keras_wavg.files.coefficients",
        "keras_wavg.files.inspection",
        "keras_wavg.files.select",
        "keras_wavg.files.synthesis",
        "keras_wavg.horizon",
        "keras_wavg.learning_rates",
        "keras_wavg.plots",
        "keras_wavg.profile",
        "keras_wavg.soup",
    },
    "__main__.py": {
        "keras_wavg.cli",
    },
    "cli/__init__.py": {
        "typer",
        "keras_wavg.cli.average",
        "keras_wavg.cli.inspect",
        "keras_wavg.cli.synthesize",
    },
    "cli/average.py": {
        "typer",
        "keras_wavg.cli.terminal",
        "keras_wavg.files.average",
        "keras_wavg.files.coefficients",
        "keras_wavg.files.select",
    },
    "cli/inspect.py": {
        "typer",
        "keras_wavg.cli.terminal",
        "keras_wavg.files.inspection",
    },
    "cli/synthesize.py": {
        "numpy",
        "typer",
        "keras_wavg.cli.terminal",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.synthesis",
        "keras_wavg.profile",
    },
    "cli/terminal.py": {
        "rich",
        "typer",
        "keras_wavg.files.streaming",
    },
    "files/__init__.py": set(),
    "files/archive.py": {
        "keras_wavg.files.source",
    },
    "files/average.py": {
        "numpy",
        "keras_wavg.atomic",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.checksum",
        "keras_wavg.files.factors",
        "keras_wavg.files.output",
        "keras_wavg.files.plan",
        "keras_wavg.files.report",
        "keras_wavg.files.shards",
        "keras_wavg.files.streaming",
        "keras_wavg.files.summing",
    },
    "files/checkpoint.py": {
        "keras_wavg.files.hdf5.reading",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.hdf5.window",
        "keras_wavg.files.shards",
        "keras_wavg.files.source",
    },
    "files/checksum.py": {
        "numpy",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.numbers",
        "keras_wavg.files.streaming",
    },
    "files/coefficients.py": {
        "keras_wavg.arguments",
    },
    "files/comparison.py": {
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.hdf5.structure",
    },
    "files/factors.py": {
        "keras_wavg.arguments",
    },
    "files/hdf5/__init__.py": set(),
    "files/hdf5/attributes.py": {
        "keras_wavg.files.hdf5.datatypes",
        "keras_wavg.files.hdf5.window",
    },
    "files/hdf5/datatypes.py": set(),
    "files/hdf5/dense.py": {
        "keras_wavg.files.hdf5.window",
    },
    "files/hdf5/groups.py": {
        "keras_wavg.files.hdf5.window",
    },
    "files/hdf5/headers.py": {
        "keras_wavg.files.hdf5.window",
    },
    "files/hdf5/links.py": {
        "keras_wavg.files.hdf5.dense",
        "keras_wavg.files.hdf5.window",
    },
    "files/hdf5/reading.py": {
        "keras_wavg.files.hdf5.attributes",
        "keras_wavg.files.hdf5.datatypes",
        "keras_wavg.files.hdf5.groups",
        "keras_wavg.files.hdf5.headers",
        "keras_wavg.files.hdf5.links",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.hdf5.window",
        "keras_wavg.files.source",
    },
    "files/hdf5/structure.py": {
        "keras_wavg.files.hdf5.datatypes",
    },
    "files/hdf5/window.py": {
        "keras_wavg.files.source",
    },
    "files/hdf5/writing.py": {
        "keras_wavg.files.hdf5.attributes",
        "keras_wavg.files.hdf5.datatypes",
        "keras_wavg.files.hdf5.groups",
        "keras_wavg.files.hdf5.headers",
        "keras_wavg.files.hdf5.reading",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.hdf5.window",
    },
    "files/inspection.py": {
        "numpy",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.checksum",
        "keras_wavg.files.comparison",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.numbers",
        "keras_wavg.files.report",
        "keras_wavg.files.source",
        "keras_wavg.files.streaming",
        "keras_wavg.profile",
    },
    "files/numbers.py": {
        "numpy",
    },
    "files/output.py": {
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.hdf5.writing",
        "keras_wavg.files.shards",
    },
    "files/plan.py": {
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.comparison",
        "keras_wavg.files.factors",
        "keras_wavg.files.hdf5.structure",
        "keras_wavg.files.numbers",
    },
    "files/report.py": {
        "keras_wavg.files.source",
    },
    "files/select.py": {
        "keras_wavg.arguments",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.report",
    },
    "files/shards.py": {
        "keras_wavg.files.source",
    },
    "files/source.py": set(),
    "files/streaming.py": {
        "keras_wavg.files.hdf5.structure",
    },
    "files/summing.py": {
        "numpy",
        "keras_wavg.files.checksum",
        "keras_wavg.files.numbers",
        "keras_wavg.files.output",
        "keras_wavg.files.plan",
        "keras_wavg.files.streaming",
    },
    "files/solution.py": {
        "numpy",
        "keras_wavg.profile",
    },
    "files/synthesis.py": {
        "numpy",
        "keras_wavg.files.average",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.report",
        "keras_wavg.files.solution",
        "keras_wavg.horizon",
        "keras_wavg.profile",
    },
    "soup/__init__.py": {
        "keras_wavg.soup.greedy",
    },
    "soup/greedy.py": {
        "rich",
        "keras_wavg.ensemble",
        "keras_wavg.files.average",
        "keras_wavg.soup.report",
        "keras_wavg.soup.tasting",
    },
    "soup/report.py": {
        "keras_wavg.files.report",
    },
    "soup/tasting.py": {
        "keras_wavg.arguments",
        "keras_wavg.batchnorm",
        "keras_wavg.files.average",
        "keras_wavg.files.checkpoint",
        "keras_wavg.files.report",
    },
    "schedules.py": {
        "numpy",
    },
    "profile.py": {
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.schedules",
    },
    "horizon.py": {
        "keras_wavg.arguments",
        "keras_wavg.profile",
        "keras_wavg.schedules",
    },
    "clock.py": {
        "keras",
    },
    "sampling.py": set(),
    "arguments.py": set(),
    "plan.py": {
        "keras_wavg.arguments",
        "keras_wavg.profile",
        "keras_wavg.sampling",
    },
    "learning_rates.py": {
        "keras",
        "keras_wavg.arguments",
    },
    "batchnorm/__init__.py": {
        "keras_wavg.batchnorm.measurement",
    },
    "batchnorm/measurement.py": {
        "keras",
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.batchnorm.moments",
        "keras_wavg.batchnorm.probe",
    },
    "batchnorm/moments.py": {
        "numpy",
    },
    "batchnorm/probe.py": {
        "keras",
    },
    "plots/__init__.py": {
        "matplotlib",
        "keras_wavg.plots.contours",
        "keras_wavg.plots.history",
        "keras_wavg.plots.plane",
        "keras_wavg.plots.profiles",
    },
    "plots/contours.py": {
        "matplotlib",
        "numpy",
        "keras_wavg.plots.plane",
        "keras_wavg.plots.style",
        "keras_wavg.plots.weight_space",
    },
    "plots/history.py": {
        "matplotlib",
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.plots.style",
    },
    "plots/plane.py": {
        "keras",
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.ensemble",
        "keras_wavg.plots.weight_space",
    },
    "plots/profiles.py": {
        "matplotlib",
        "numpy",
        "keras_wavg.plots.style",
        "keras_wavg.profile",
    },
    "plots/style.py": {
        "matplotlib",
    },
    "plots/weight_space.py": {
        "keras",
        "numpy",
    },
    "backend/__init__.py": {
        "keras",
        "keras_wavg.schedules",
    },
    "backend/counting.py": {
        "keras",
        "keras_wavg.schedules",
    },
    "backend/packing.py": {
        "keras",
    },
    "backend/several.py": {
        "keras_wavg.backend",
        "keras_wavg.backend.counting",
        "keras_wavg.clock",
        "keras_wavg.schedules",
    },
    "backend/jax.py": {
        "jax",
        "numpy",
        "keras_wavg.backend",
        "keras_wavg.backend.counting",
        "keras_wavg.backend.packing",
        "keras_wavg.clock",
        "keras_wavg.schedules",
    },
    "backend/tensorflow.py": {
        "numpy",
        "tensorflow",
        "keras_wavg.backend.counting",
        "keras_wavg.backend.packing",
        "keras_wavg.clock",
        "keras_wavg.schedules",
    },
    "backend/arrivals.py": {
        "torch",
    },
    "backend/torch.py": {
        "keras",
        "torch",
        "keras_wavg.backend.arrivals",
        "keras_wavg.backend.counting",
        "keras_wavg.clock",
        "keras_wavg.schedules",
    },
    "samples/__init__.py": set(),
    "samples/collection.py": {
        "keras",
        "numpy",
        "keras_wavg.backend",
        "keras_wavg.backend.counting",
        "keras_wavg.clock",
    },
    "samples/bema.py": {
        "numpy",
        "keras_wavg.backend",
        "keras_wavg.samples.collection",
        "keras_wavg.schedules",
    },
    "samples/window.py": {
        "numpy",
        "keras_wavg.samples.collection",
    },
    "samples/gaussian.py": {
        "numpy",
        "keras_wavg.samples.collection",
    },
    "samples/members.py": {
        "keras_wavg.atomic",
        "keras_wavg.samples.collection",
        "keras_wavg.saveable",
    },
    "ensemble.py": {
        "keras",
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.samples.collection",
    },
    "atomic.py": set(),
    "state.py": {
        "keras",
        "numpy",
    },
    "saveable.py": {
        "h5py",
        "keras",
        "numpy",
    },
    "adapters.py": {
        "keras",
    },
    "shadow.py": {
        "keras",
        "numpy",
        "keras_wavg.adapters",
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.backend.counting",
        "keras_wavg.clock",
        "keras_wavg.plan",
        "keras_wavg.state",
    },
    "hooks.py": set(),
    "running.py": {
        "keras_wavg.backend.counting",
        "keras_wavg.clock",
        "keras_wavg.hooks",
        "keras_wavg.plan",
        "keras_wavg.shadow",
        "keras_wavg.state",
    },
    "callbacks/__init__.py": set(),
    "callbacks/averaging.py": {
        "keras",
        "numpy",
        "keras_wavg.atomic",
        "keras_wavg.callbacks.complaints",
        "keras_wavg.callbacks.fellows",
        "keras_wavg.plan",
        "keras_wavg.profile",
        "keras_wavg.running",
        "keras_wavg.saveable",
        "keras_wavg.shadow",
    },
    "callbacks/complaints.py": {
        "keras_wavg.callbacks.fellows",
        "keras_wavg.running",
    },
    "callbacks/ema.py": {
        "keras_wavg.arguments",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.callbacks.scheduled",
        "keras_wavg.sampling",
        "keras_wavg.schedules",
    },
    "callbacks/bema.py": {
        "keras_wavg.arguments",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.plan",
        "keras_wavg.profile",
        "keras_wavg.samples.bema",
        "keras_wavg.sampling",
    },
    "callbacks/evaluator.py": {
        "keras",
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.callbacks.fellows",
        "keras_wavg.shadow",
    },
    "callbacks/power_ema.py": {
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.backend.several",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.ensemble",
        "keras_wavg.plan",
        "keras_wavg.profile",
        "keras_wavg.sampling",
        "keras_wavg.schedules",
    },
    "callbacks/lookahead.py": {
        "keras_wavg.arguments",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.callbacks.scheduled",
        "keras_wavg.sampling",
        "keras_wavg.schedules",
    },
    "callbacks/scheduled.py": {
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.plan",
        "keras_wavg.profile",
        "keras_wavg.sampling",
        "keras_wavg.schedules",
    },
    "callbacks/fellows.py": set(),
    "callbacks/epochs.py": {
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.batchnorm",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.plan",
        "keras_wavg.profile",
        "keras_wavg.sampling",
        "keras_wavg.shadow",
    },
    "callbacks/swa.py": {
        "keras_wavg.arguments",
        "keras_wavg.backend",
        "keras_wavg.callbacks.epochs",
        "keras_wavg.schedules",
    },
    "callbacks/lawa.py": {
        "keras_wavg.arguments",
        "keras_wavg.callbacks.epochs",
        "keras_wavg.profile",
        "keras_wavg.samples.window",
    },
    "callbacks/swag.py": {
        "numpy",
        "keras_wavg.arguments",
        "keras_wavg.callbacks.epochs",
        "keras_wavg.ensemble",
        "keras_wavg.samples.gaussian",
    },
    "callbacks/fge.py": {
        "keras_wavg.arguments",
        "keras_wavg.callbacks.averaging",
        "keras_wavg.ensemble",
        "keras_wavg.plan",
        "keras_wavg.samples.members",
        "keras_wavg.sampling",
    },
}


def is_room(module: str) -> bool:
    """Whether it is a module of the package."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(source: str) -> set[str]:
    """Modules that a source imports, outside the standard library."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {n if is_room(n) else node.module for n in names}
    roots = {
        name if name.startswith("keras_wavg") else name.split(".")[0]
        for name in found
    }
    return roots - set(sys.stdlib_module_names)


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_a_room_imports_only_what_it_may(room):
    received = imports((PACKAGE / room).read_text())
    assert received <= MAY_IMPORT[room.as_posix()]


def test_the_table_names_every_room_and_no_other():
    assert {room.as_posix() for room in ROOMS} == set(MAY_IMPORT)


def test_a_forbidden_import_would_be_found():
    source = "if x:\n  import torch.nn\n  from keras_wavg.shadow import Shadow"
    assert imports(source) == {"torch", "keras_wavg.shadow"}


def code_lines(source: str, node: ast.AST) -> int:
    """Lines of a module or function that are neither blank, comment nor doc."""
    body = node.body[ast.get_docstring(node) is not None :]
    if not body:
        return 0
    lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(text) and text[0] != "#" for text in map(str.strip, lines))


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_no_file_and_no_function_is_long(room):
    source = (PACKAGE / room).read_text()
    tree = ast.parse(source)
    long = {
        node.name: code_lines(source, node)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and code_lines(source, node) > 30
    }
    assert long == {}
    inside = [n for n in ast.walk(tree) if isinstance(n, DOCUMENTED)]
    docs = sum(len((ast.get_docstring(n) or "").splitlines()) for n in inside)
    assert code_lines(source, tree) - docs <= 200


def test_every_public_name_can_be_had_and_nothing_else_is_offered():
    assert dir(keras_wavg) == sorted(keras_wavg.__all__)
    for name in keras_wavg.__all__:
        assert getattr(keras_wavg, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'SMA'"):
        _ = keras_wavg.SMA


@pytest.mark.parametrize("room", ["files.average", "soup", "cli"])
def test_saved_weights_need_neither_keras_nor_h5py(room):
    code = (
        f"import sys, keras_wavg.{room};"
        "print(sorted({'keras', 'h5py'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_live_and_saved_averages_do_not_know_each_other():
    for room, names in MAY_IMPORT.items():
        if room.startswith(("__", "soup/", "cli/")):
            continue
        saved = room.startswith("files/")
        known = {name for name in names if name.startswith("keras_wavg.")}
        known -= {
            f"keras_wavg.{n}"
            for n in ("arguments", "atomic", "profile", "schedules", "horizon")
        }
        inside = {name.startswith("keras_wavg.files") for name in known}
        assert inside <= {saved}, room


def test_importing_the_package_imports_no_backend():
    heavy = "{'keras', 'tensorflow', 'jax', 'torch', 'numpy'}"
    code = f"import sys, keras_wavg; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_another_backend_is_refused_with_what_to_do(monkeypatch):
    from keras_wavg.backend import averages_of

    monkeypatch.setattr("keras.config.backend", lambda: "numpy")
    with pytest.raises(NotImplementedError, match="KERAS_BACKEND"):
        averages_of([], Uniform(), 0, None)
