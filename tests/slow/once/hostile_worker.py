"""Averages and inspects crafted checkpoints, with limited memory and time.

    python hostile_worker.py DIRECTORY

DIRECTORY has a directory for each checkpoint, see `hostile.py`. Each one is
averaged in a separate process, and its result is printed as a line of JSON.
"""

import json
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path

import keras_wavg.files.keras_archive  # noqa: F401 - before recording
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.checksum import checksum
from keras_wavg.files.inspection import inspect_checkpoint

MEMORY = 256 << 20
SECONDS = 30
EVENTS = ("subprocess.", "os.system", "os.exec", "socket.", "pickle.")
LIBRARIES = tuple(sysconfig.get_paths().values())

events = []


def main(parent):
    sys.addaudithook(audit)
    for directory in sorted(p for p in parent.iterdir() if p.is_dir()):
        print(json.dumps(attempt(directory, parent)), flush=True)  # noqa: T201


def audit(event, arguments):
    """Record opened files, and forbidden events."""
    if event == "open" and not isinstance(arguments[0], int):
        events.append(os.fsdecode(arguments[0]))
    elif event.startswith(EVENTS):
        events.append(event)


def attempt(directory, parent):
    """The result for a sample, in a process that may crash or hang."""
    read, write = os.pipe()
    before = names(directory)
    if not (child := os.fork()):
        limit()
        result = outcome(directory, parent)
        with os.fdopen(write, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    failed = {"error": ["killed"], "message": f"status {status}", "opened": []}
    return {
        **(json.loads(text) if text else {**failed, "inspection": failed}),
        "left": sorted(names(directory) - before),
        "seconds": usage.ru_utime + usage.ru_stime,
        "mebibytes": usage.ru_maxrss // 1024,
    }


def names(directory):
    return {path.name for path in directory.iterdir()}


def limit():
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def outcome(directory, parent):
    """The results or errors of averaging and inspecting, and opened files."""
    bad = find(directory, "bad")
    first = find(directory, "first") or parent / "valid.weights.h5"
    suffix = ".keras" if bad.suffix == ".keras" else f".weights{bad.suffix}"
    output = directory / f"mean{suffix}"
    events.clear()
    result = guarded(lambda: averaged([first, bad], output))
    result["inspection"] = guarded(lambda: inspected(bad))
    allowed = (directory, bad, first, output)
    result["opened"] = [path for path in events if not is_own(path, *allowed)]
    return result


def find(directory, stem):
    names = [f"{stem}.weights.json", f"{stem}.keras", f"{stem}.weights.h5"]
    paths = [directory / name for name in names]
    found = [path for path in paths if os.path.lexists(path)]
    return next(iter(found or directory.glob(f"{stem}*")), None)


def is_own(path, directory, *files):
    """Whether it is one of the files, a shard, or a temporary file."""
    if path in {str(directory), *map(str, files)}:
        return True
    shards = [
        str(file).replace(".weights.json", "_0000")
        for file in files
        if file.suffix == ".json"
    ]
    return path.startswith((f"{directory}/.", *shards, *LIBRARIES))


def guarded(work):
    try:
        return work()
    except BaseException as error:  # noqa: BLE001
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"error": kinds, "message": str(error)}


def averaged(paths, output):
    report = average_checkpoints(paths, output)
    with CheckpointOpener().open(output) as checkpoint:
        found = checksum(checkpoint)
        saved = json.loads(checkpoint.provenance)["checksum"]
    return {
        "notes": report.notes,
        "complete": found == saved == report.checksum,
        "same": found == report.sources[-1].checksum,
    }


def inspected(path):
    return {"text": str(inspect_checkpoint(path))}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
