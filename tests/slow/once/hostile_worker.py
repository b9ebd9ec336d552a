"""Averages and inspects crafted checkpoints, with little memory and time.

    python hostile_worker.py FOLDER

FOLDER has a folder for each, see `hostile.py`. Each is averaged in a process
of its own, so that none suffers from another. A line of JSON tells what came of
it.
"""

import json
import os
import resource
import signal
import sys
import sysconfig
from pathlib import Path

import keras_wavg.files.archive  # noqa: F401 - else it would be opened later
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.checksum import checksum
from keras_wavg.files.inspection import inspect_checkpoint
from keras_wavg.files.opener import Opener

MEMORY = 256 << 20
SECONDS = 30
EVENTS = ("subprocess.", "os.system", "os.exec", "socket.", "pickle.")
LIBRARIES = tuple(sysconfig.get_paths().values())

events = []


def main(parent):
    sys.addaudithook(audit)
    for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
        print(json.dumps(attempt(folder, parent)), flush=True)  # noqa: T201


def audit(event, arguments):
    """Keep what is opened, and what must never be done."""
    if event == "open" and not isinstance(arguments[0], int):
        events.append(os.fsdecode(arguments[0]))
    elif event.startswith(EVENTS):
        events.append(event)


def attempt(folder, parent):
    """What comes of a sample, in a process that may crash or hang."""
    read, write = os.pipe()
    before = names(folder)
    if not (child := os.fork()):
        limit()
        result = outcome(folder, parent)
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
        "left": sorted(names(folder) - before),
        "seconds": usage.ru_utime + usage.ru_stime,
        "mebibytes": usage.ru_maxrss // 1024,
    }


def names(folder):
    return {path.name for path in folder.iterdir()}


def limit():
    signal.alarm(SECONDS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def outcome(folder, parent):
    """What averaging and inspecting give or raise, and what they open."""
    bad = given(folder, "bad")
    first = given(folder, "first") or parent / "sound.weights.h5"
    suffix = ".keras" if bad.suffix == ".keras" else f".weights{bad.suffix}"
    output = folder / f"mean{suffix}"
    events.clear()
    result = guarded(lambda: averaged([first, bad], output))
    result["inspection"] = guarded(lambda: inspected(bad))
    own = (folder, bad, first, output)
    result["opened"] = [path for path in events if not is_own(path, *own)]
    return result


def given(folder, stem):
    names = [f"{stem}.weights.json", f"{stem}.keras", f"{stem}.weights.h5"]
    found = [folder / name for name in names if os.path.lexists(folder / name)]
    return next(iter(found or folder.glob(f"{stem}*")), None)


def is_own(path, folder, *files):
    """Whether it is one of the files, a shard of one, or to be moved there."""
    if path in {str(folder), *map(str, files)}:
        return True
    shards = [
        str(file).replace(".weights.json", "_0000")
        for file in files
        if file.suffix == ".json"
    ]
    return path.startswith((f"{folder}/.", *shards, *LIBRARIES))


def guarded(work):
    try:
        return work()
    except BaseException as error:  # noqa: BLE001
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"error": kinds, "message": str(error)}


def averaged(paths, output):
    report = average_checkpoints(paths, output)
    with Opener().open(output) as checkpoint:
        found = checksum(checkpoint)
        kept = json.loads(checkpoint.provenance)["checksum"]
    return {
        "notes": report.notes,
        "whole": found == kept == report.checksum,
        "same": found == report.sources[-1].checksum,
    }


def inspected(path):
    return {"text": str(inspect_checkpoint(path))}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
