"""Alternatives for averaging saved weights, each for a separate process.

    python tests/benchmarks/file_peers.py FUNCTION OUTPUT FILE [FILE ...]

Each function imports only what it needs, because imports count in its time and
memory.
"""

import os
import sys
import threading

BLOCK = 1 << 20


def limit(output: str, *files: str, sync: bool = False) -> None:
    """Read all bytes and write those of one file, with two threads.

    This is the least that any average has to do.
    """
    sources = [os.open(file, os.O_RDONLY) for file in files]
    target = os.open(output, os.O_WRONLY | os.O_CREAT)
    size = os.fstat(sources[0]).st_size

    def copy(first: int) -> None:
        block = memoryview(bytearray(BLOCK))
        for start in range(first * BLOCK, size, 2 * BLOCK):
            for source in sources:
                count = os.preadv(source, [block], start)
            os.pwrite(target, block[:count], start)

    threads = [threading.Thread(target=copy, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sync:
        os.fsync(target)


def limit_fsync(output: str, *files: str) -> None:
    """Do the same, and sync the output to disk."""
    limit(output, *files, sync=True)


def limit_numpy(output: str, *files: str) -> None:
    """Do the same in a process that has imported NumPy."""
    import numpy  # noqa: F401

    limit(output, *files, sync=True)


def keras_loop(output: str, *files: str) -> None:
    """Load each file with Keras and sum its arrays."""
    import numpy

    model = model_for(files[0])
    total = [numpy.zeros(w.shape, w.dtype) for w in model.weights]
    for file in files:
        model.load_weights(file)
        for index, value in enumerate(model.get_weights()):
            total[index] += value
    for index in range(len(total)):
        total[index] /= len(files)
    model.set_weights(total)
    model.save_weights(output)


def safetensors_numpy(output: str, *files: str) -> None:
    """Sum memory-mapped files with NumPy, as fairseq does."""
    from safetensors.numpy import save_file

    save_file(_mean(files, "numpy", lambda array: array), output)


def safetensors_torch(output: str, *files: str) -> None:
    """Do the same with torch, whose tensors share the mapped memory."""
    from safetensors.torch import save_file

    save_file(_mean(files, "pt", lambda tensor: tensor.clone()), output)


def _mean(files, framework, own):
    import safetensors

    total = {}
    for file in files:
        with safetensors.safe_open(file, framework) as arrays:
            names = arrays.keys()
            for name in names:
                if name in total:
                    total[name] += arrays.get_tensor(name)
                else:
                    total[name] = own(arrays.get_tensor(name))
    for name in total:
        total[name] /= len(files)
    return total


def make(directory: str, count: str) -> None:
    """Save different weights in each file, each in two formats."""
    import shutil
    from pathlib import Path

    import h5py
    import numpy
    from safetensors.numpy import save_file

    Path(directory).mkdir()
    saved = directory + "/{:04}.weights.h5"
    model_for(saved).save_weights(saved.format(0))
    rng = numpy.random.default_rng(0)

    def renew(name, array):
        if isinstance(array, h5py.Dataset):
            values[name] = rng.standard_normal(array.shape, "float32")
            array.write_direct(values[name])

    for number in range(int(count)):
        if number:
            shutil.copyfile(saved.format(0), saved.format(number))
        values = {}
        with h5py.File(saved.format(number), "r+") as file:
            file.visititems(renew)
        save_file(values, f"{directory}/{number:04}.safetensors")


def model_for(file: str):
    """Return the model of a file, from the name of its directory."""
    from pathlib import Path

    import keras

    kind = Path(file).parent.name
    if kind == "resnet":
        return keras.applications.ResNet50V2(weights=None)
    units, layers = {"dense": (3620, 8), "small": (32, 4)}[kind]
    return keras.Sequential(
        [keras.Input((units,))]
        + [keras.layers.Dense(units) for _ in range(layers)]
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
