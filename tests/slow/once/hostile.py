"""Crafted checkpoints that must be refused, and a few that must be averaged.

Each builder writes the file `bad` with a suffix to an empty directory, and may
write a file `first` to average it with. Otherwise it is averaged with a valid
file. `hostile_worker.py` averages them.
"""

import json
import os
import random
import shutil
import struct
import zipfile

import h5py
import numpy

from keras_wavg.files.hdf5.encoder import assign_offsets, encode_metadata
from keras_wavg.files.hdf5.structure import Array, Structure

SHAPES = {"dense": [(4, 8), (8,)], "dense_1": [(8, 1), (1,)]}
# HDF5 stores groups as links if a name is not ASCII.
NOT_ASCII = SHAPES | {"schlüssel": [(1,)]}
FIRST, SECOND = "layers/dense/vars", "layers/dense_1/vars"
END, ROOT = 40, 64  # Offsets in the superblock of two addresses.
MEMBER = "model.weights.h5"
UNDEFINED = 2**64 - 1


# Valid files


def valid_file(path, seed=0, scale=1.0, layers=SHAPES, **options):
    """Write a file with the groups that Keras writes."""
    rng = numpy.random.default_rng(seed)
    with h5py.File(path, "w", **options) as file:
        file.create_group("vars").attrs["name"] = "model"
        for layer, shapes in layers.items():
            stored = file.create_group(f"layers/{layer}/vars")
            stored.attrs["name"] = layer
            for index, shape in enumerate(shapes):
                values = scale * rng.normal(size=shape)
                stored[str(index)] = values.astype("float32")
    return path


def valid_archive(path, seed=0, compression=zipfile.ZIP_STORED, **members):
    """Write a `.keras` file, with additional members."""
    weights = valid_file(path.with_name("weights"), seed)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps({"name": "model"}) * 9)
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
        archive.write(weights, MEMBER, compression)
    weights.unlink()
    return path


def valid_shards(path, seed=0):
    """Write an index and two shards."""
    base = path.name.partition(".")[0]
    shards = [path.with_name(f"{base}_0000{i}.weights.h5") for i in (0, 1)]
    for shard, layer in zip(shards, SHAPES, strict=True):
        valid_file(shard, seed, layers={layer: SHAPES[layer]})
    index(
        path,
        {
            f"/{p}": [s.name]
            for p, s in zip((FIRST, SECOND), shards, strict=True)
        },
    )
    return shards


def index(path, weight_map):
    content = {"metadata": {"total_size": 0.0}, "weight_map": weight_map}
    path.write_text(json.dumps(content))


def h5(directory, name="bad"):
    return directory / f"{name}.weights.h5"


def keras_file(directory):
    return directory / "bad.keras"


def index_file(directory):
    return directory / "bad.weights.json"


# A valid file, edited by h5py


def edited(change):
    """A file after `change(group, directory)` with one of its groups."""

    def build(directory):
        with h5py.File(valid_file(h5(directory), 1), "r+") as file:
            change(file[FIRST], directory)

    return build


def linked(make):
    """A file with an additional link of h5py, and its possible targets."""

    def change(group, directory):
        valid_file(directory / "victim.h5")
        os.mkfifo(directory / "fifo")
        group["2"] = make(directory)

    return edited(change)


def external(name, path="/" + FIRST):
    return linked(lambda directory: h5py.ExternalLink(directory / name, path))


def stored_as(**options):
    """A file with a variable that h5py creates with options."""

    def change(group, directory):
        os.mkfifo(directory / "fifo")
        del group["1"]
        group.create_dataset("1", **options)

    return edited(change)


def variable(values):
    """A file with other values for a variable."""

    def change(group, directory):
        del group["1"]
        group["1"] = values

    return edited(change)


def pair(*values):
    """Two files with an additional variable, with different values."""

    def build(directory):
        for name, value in zip(("first", "bad"), values, strict=True):
            with h5py.File(valid_file(h5(directory, name), 1), "r+") as file:
                file[FIRST]["2"] = value

    return build


def virtual(group, directory):
    valid_file(directory / "victim.h5")
    layout = h5py.VirtualLayout((8,), "float32")
    layout[:] = h5py.VirtualSource(directory / "victim.h5", f"{FIRST}/1", (8,))
    del group["1"]
    group.create_virtual_dataset("1", layout)


def diamond(group, directory):
    for depth in range(30):
        below = group.create_group(f"a{depth}")
        group[f"b{depth}"] = below
        group = below


def deep(group, directory):
    for _ in range(3000):
        group = group.create_group("a")


def created(layout, bias):
    """A file with a variable of a layout and an exponent bias."""

    def change(group, directory):
        del group["1"]
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_ebias(bias)
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_obj_track_times(track_times=False)
        options.set_layout(layout)
        space = h5py.h5s.create_simple((8,))
        h5py.h5d.create(group.id, b"1", kind, space, options)

    return edited(change)


def wrong_attribute(group, directory):
    group["1"].attrs["dtype"] = "bfloat16"


def long_paths(group, directory):
    for _ in range(58):
        group = group.create_group("n" * 1000)
    for number in range(10_000):
        group.create_group(str(number))


def named(name):
    return edited(lambda group, directory: group.create_group(name))


def provenance(text):
    return edited(lambda group, _: group.file.attrs.create("keras_wavg", text))


def swapped_names(group, directory):
    group.attrs["name"] = "dense_1"
    group.file[SECOND].attrs["name"] = "dense"


# A valid file with edited bytes


def patched(change, **options):
    """A file after `change(bytearray)`, which may return other bytes."""

    def build(directory):
        path = valid_file(h5(directory), 1, **options)
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or data)

    return build


def array_for_root(directory):
    path = valid_file(h5(directory), 1)
    with h5py.File(path) as file:
        array = h5py.h5o.get_info(file[FIRST]["0"].id).addr
    data = bytearray(path.read_bytes())
    put(data, ROOT, array)
    path.write_bytes(data)


def put(data, offset, *values, layout="Q"):
    struct.pack_into(f"<{len(values)}{layout}", data, offset, *values)


def cut(data):
    del data[len(data) // 2 :]
    put(data, END, len(data))


def tree_loop(data):
    """Make each B-tree its own child, with level 1."""
    for at in find(data, b"TREE"):
        put(data, at + 4, 0, 1, layout="B")
        put(data, at + 6, 1, layout="H")
        put(data, at + 32, at)


def tree_spiral(data):
    """Make a B-tree of 255 levels from one node."""
    (at, *_) = find(data, b"TREE")
    put(data, at + 5, 255, layout="B")


def at_each(signature, offset, value, layout="Q"):
    """A file with a patch after each signature."""

    def change(data):
        for at in find(data, signature):
            put(data, at + offset, value, layout=layout)

    return patched(change)


def find(data, signature):
    at = data.find(signature)
    while at >= 0:
        yield at
        at = data.find(signature, at + 1)


def flips(seed, count):
    def change(data):
        rng = random.Random(seed)  # noqa: S311
        for _ in range(count):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)

    return patched(change)


def words(seed, layers=SHAPES):
    """A file with one to three words replaced by invalid addresses."""

    def change(data):
        rng = random.Random(seed)  # noqa: S311
        size = len(data)
        invalid = [0, 1, 8, 96, size - 8, size, 2**31, 2**32, 2**63, UNDEFINED]
        for _ in range(rng.randint(1, 3)):
            put(data, 8 * rng.randrange(size // 8), rng.choice(invalid))

    return patched(change, layers=layers)


# Objects that no library writes


def message(kind, body):
    body += bytes(-len(body) % 8)
    return struct.pack("<2HB3x", kind, len(body), 0) + body


def header(body, size=None):
    length = len(body) if size is None else size
    return struct.pack("<2BH2I4x", 1, 0, 0, 1, length) + body


def attribute(name, collection, length=1):
    """An attribute whose value is the first string of a collection."""
    text = name.encode() + b"\0"
    padded = text + bytes(-len(text) % 8)
    kind = bytes.fromhex("19010100 10000000 10000000 01000000 00000800")
    value = struct.pack("<IQI", length, collection, 1)
    sizes = struct.pack("<Bx3H", 1, len(text), 20, 8)
    space = bytes([1, 0, 0, 0, 0, 0, 0, 0])
    return message(12, sizes + padded + kind + bytes(4) + space + value)


def collection(text):
    text += bytes(-len(text) % 8)
    size = 16 + 16 + len(text) + 16
    head = struct.pack("<4sB3xQ2H4xQ", b"GCOL", 1, size, 1, 1, len(text))
    return head + text + bytes(16)


def grafted(make, where=FIRST, size=None):
    """A file in which a group is replaced by other bytes.

    `make(at, group)` returns these bytes and the start of the group's header in
    them. `at` is their address, and `group` the message of the old group. A
    greater `size` adds zeros to the file, which is sparse.
    """

    def build(directory):
        path = valid_file(h5(directory), 1)
        with h5py.File(path) as file:
            old = h5py.h5o.get_info(file[where].id).addr
        data = path.read_bytes()
        data += bytes(-len(data) % 8)
        group = message(17, tree_and_heap(data, old))
        new, start = make(len(data), group)
        pointer = struct.pack("<Q", old)
        data = data.replace(pointer, struct.pack("<Q", len(data) + start))
        data = bytearray(data + new)
        put(data, END, max(len(data), size or 0))
        path.write_bytes(data)
        os.truncate(path, max(len(data), size or 0))

    return build


def tree_and_heap(data, address):
    """The body of the message that makes an object a group."""
    at = address + 16
    while True:
        kind, size = struct.unpack_from("<2H", data, at)
        if kind == 17:
            return data[at + 8 :][:16]
        # The header may continue at another address.
        (at,) = (
            struct.unpack_from("<Q", data, at + 8)
            if kind == 16
            else (at + 8 + size,)
        )


def attributes(count, text):
    """A group with many attributes that share one long string."""

    def make(at, group):
        strings = collection(text)
        body = b"".join(
            attribute(f"{i:x}", at, len(text)) for i in range(count)
        )
        return strings + header(group + body), len(strings)

    return grafted(make)


def one_attribute(name):
    def make(at, group):
        strings = collection(b"text")
        return strings + header(group + attribute(name, at)), len(strings)

    return grafted(make)


def empty_strings(at, group):
    """A collection of a million empty strings."""
    count = 1_000_000
    texts = struct.pack("<2H4xQ", 7, 1, 0) * count
    strings = struct.pack("<4sB3xQ", b"GCOL", 1, 16 + len(texts)) + texts
    return strings + header(group + attribute("name", at)), len(strings)


def many_rows(at, group):
    """A group whose links are in a heap of 65535 rows."""
    heap = bytearray(struct.pack("<4sB2H", b"FRHP", 0, 7, 0).ljust(146, b"\0"))
    put(heap, 110, 4, layout="H")
    put(heap, 112, 512, UNDEFINED)
    put(heap, 128, 32, layout="H")
    put(heap, 140, 65535, layout="H")
    heap += bytes(-len(heap) % 8)
    return heap + header(message(2, struct.pack("<2B2Q", 0, 0, at, at))), 152


def empty_messages(at, group):
    return header(bytes(1 << 24) + group), 0


def continued(*numbers):
    """A header that continues at an address, or at its own, with a length."""

    def make(at, group):
        address, length = numbers
        address = at + 16 if address is None else address
        return header(message(16, struct.pack("<2Q", address, length))), 0

    return grafted(make)


def huge(part):
    """A part of a group with the size of a sparse file of half a GiB."""
    size = 1 << 29

    def make(at, group):
        rest = size - at - 256
        if part == "header":
            more = message(16, struct.pack("<2Q", at + 256, rest))
            return header(more + group), 0
        if part == "strings":
            strings = struct.pack("<4sB3xQ", b"GCOL", 1, rest) + bytes(16)
            return strings + header(group + attribute("name", at)), len(strings)
        heap = struct.pack("<4sB3x3Q", b"HEAP", 0, rest, 1, at + 64)
        group = message(17, group[8:16] + struct.pack("<Q", at))
        return heap + header(group), len(heap)

    return grafted(make, size=size)


def with_addresses(**addresses):
    """A file whose arrays have other addresses, by their names in a group."""

    def build(directory):
        path = valid_file(h5(directory), 1)
        with h5py.File(path) as file:
            old = {n: d.id.get_offset() for n, d in file[FIRST].items()}
            sizes = {n: d.nbytes for n, d in file[FIRST].items()}
        data = path.read_bytes()
        for name, other in addresses.items():
            key = name.strip("_")
            new = other(old) if callable(other) else other
            data = data.replace(
                struct.pack("<2Q", old[key], sizes[key]),
                struct.pack("<2Q", new % 2**64, sizes[key]),
            )
        path.write_bytes(data)

    return build


def many(count):
    """Two files with `count` variables."""

    def build(directory):
        names = [f"layers/dense_{i}/vars" for i in range(count // 2)]
        groups = {"": {}, "layers": {}}
        for name in names:
            groups |= {name.rpartition("/")[0]: {}, name: {}}
        arrays = {
            f"{n}/{i}": Array("float32", (1,)) for n in names for i in (0, 1)
        }
        structure, end = assign_offsets(Structure(groups, arrays))
        head, tail = encode_metadata(structure, end)
        h5(directory).write_bytes(head.ljust(end, b"\0") + tail)
        shutil.copy(h5(directory), h5(directory, "first"))

    return build


# Files that are not HDF5


def content(data, name="bad.weights.h5"):
    return lambda directory: (directory / name).write_bytes(data)


def link_to(target):
    return lambda directory: h5(directory).symlink_to(target)


def archive(change=None, **members):
    """A `.keras` file after `change(bytearray)`, with additional members."""

    def build(directory):
        names = {name.replace("_", "/"): c for name, c in members.items()}
        path = valid_archive(keras_file(directory), 1, **names)
        if change:
            data = bytearray(path.read_bytes())
            path.write_bytes(change(data) or data)

    return build


def central_directory(name, offset, value, layout="I"):
    """A patch of the entry of a member in the central directory."""

    def change(data):
        at = data.rindex(name.encode()) - 46
        put(data, at + offset, value, layout=layout)

    return change


def damaged(method):
    """A `.keras` file with a member whose compressed bytes are damaged."""

    def build(directory):
        path = valid_archive(keras_file(directory), 1)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("assets/a", bytes(range(256)) * 9, method)
        data = bytearray(path.read_bytes())
        at = data.index(b"assets/a") + 8
        data[at : at + 40] = b"\xff" * 40
        path.write_bytes(data)

    return build


def weights_deflated(directory):
    valid_archive(keras_file(directory), 1, zipfile.ZIP_DEFLATED)


def shifted_central_directory(data):
    """Increase the offset of the central directory."""
    at = data.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", data, at + 16)
    put(data, at + 16, offset + 1000, layout="I")


def member_before_the_file(data):
    """Shift the addresses of all members but the weights."""
    at = data.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", data, at + 16)
    put(data, at + 16, offset + 1, layout="I")
    at = data.rindex(MEMBER.encode()) - 46
    (offset,) = struct.unpack_from("<I", data, at + 42)
    put(data, at + 42, offset + 1, layout="I")


def shards(change):
    """An index and shards after `change(index, shards)`."""

    def build(directory):
        change(index_file(directory), valid_shards(index_file(directory), 1))

    return build


def mapped(weight_map):
    return shards(lambda path, found: index(path, weight_map))


def in_two_shards(path, found):
    valid_file(found[0], layers=SHAPES)
    valid_file(found[1], layers=SHAPES)
    names = [shard.name for shard in found]
    index(path, {f"/{FIRST}": names, f"/{SECOND}": names})


def group_and_array(path, found):
    """A path that is an array in one shard and a group in another."""
    with h5py.File(found[0], "w") as file:
        file["a/vars"] = numpy.zeros(3, "float32")
    with h5py.File(found[1], "w") as file:
        file["a/vars/0"] = numpy.zeros(3, "float32")
    index(path, {"/a": [found[0].name], "/a/vars": [found[1].name]})
    for file in (*found, path):
        text = file.read_bytes().replace(b"bad_", b"first_")
        file.with_name(file.name.replace("bad", "first")).write_bytes(text)


def shard_outside(path, found):
    found[1].unlink()
    found[1].symlink_to("/etc/passwd")


def shard_is_fifo(path, found):
    found[1].unlink()
    os.mkfifo(found[1])


def incomplete_index(path, found):
    index(path, {f"/{FIRST}": [s.name for s in found]})


def terminal_escape(directory):
    valid_file(
        directory / "bad\x1b[31m\n.weights.h5", layers={"conv": [(2, 2)]}
    )


def wide(path, found):
    text = "[" + "[]," * 5_000_000 + "[]]"
    path.write_text('{"weight_map": {}, "metadata": ' + text + "}")


OTHER = "an object is neither|not as Keras writes|that Keras does not save"
LINK = "there is a link"
NOT_CONTIGUOUS = "not contiguous|compressed|neither a group nor an array"
BOUNDS = "not all in the file|does not end|in it is outside it|too long"
NAME = "is not valid"
TWICE = "by two paths, or in a cycle"
START = "does not start as an HDF5 file"
ZIP = "not a valid zip archive"
INDEX = "not an index of shards"
SHARD = "as a shard"
FORGED = (
    '{"checksum": "", "sources": '
    '[{"path": "a\\u001b[31m", "checksum": %s, "coefficient": %s}]}'
)
SIGNALLING = numpy.full(8, 0x7FA00000, "uint32").view("float32")
ZEROS = numpy.zeros(8, "float32")

WEIGHTS = {
    "external link to a variable": (external("victim.h5", FIRST + "/1"), LINK),
    "external link to a group": (external("victim.h5"), LINK),
    "external link to /etc/passwd": (external("/etc/passwd"), LINK),
    "external link to /dev/zero": (external("/dev/zero"), LINK),
    "external link to a FIFO": (external("fifo"), LINK),
    "external storage of /etc/passwd": (
        stored_as(
            shape=(8,), dtype="float32", external=[("/etc/passwd", 0, 32)]
        ),
        "an array in an external file",
    ),
    "external storage of a FIFO": (
        stored_as(shape=(8,), dtype="float32", external=[("fifo", 0, 32)]),
        "an array in an external file",
    ),
    "virtual variable": (edited(virtual), "not stored as Keras writes it"),
    "soft link": (linked(lambda directory: h5py.SoftLink("1")), LINK),
    "soft link to itself": (linked(lambda directory: h5py.SoftLink("2")), LINK),
    "soft link to nothing": (
        linked(lambda directory: h5py.SoftLink("no")),
        LINK,
    ),
    "soft link out": (linked(lambda _: h5py.SoftLink("/../../x")), LINK),
    "hard link in a cycle": (
        edited(lambda group, directory: group.__setitem__("2", group.parent)),
        TWICE,
    ),
    "hard link to another variable": (
        edited(lambda group, directory: group.__setitem__("2", group["1"])),
        TWICE,
    ),
    "hard links of 2**30 paths": (edited(diamond), TWICE),
    "groups 3000 deep": (edited(deep), "more than 64 deep"),
    "a gibibyte of paths": (edited(long_paths), "."),
    "shape of 4 PiB": (stored_as(shape=(2**50,), dtype="float32"), BOUNDS),
    "shape of 64 GiB": (stored_as(shape=(2**18,) * 2, dtype="uint8"), BOUNDS),
    "shape of 4 GB, gzip": (
        stored_as(shape=(10**9,), dtype="float32", compression="gzip"),
        NOT_CONTIGUOUS,
    ),
    "unallocated": (stored_as(shape=(2**28,), dtype="float32"), BOUNDS),
    "gzip bomb": (
        stored_as(data=numpy.zeros(1 << 24, "float32"), compression="gzip"),
        NOT_CONTIGUOUS,
    ),
    "chunks and gzip": (
        stored_as(data=ZEROS, compression="gzip"),
        NOT_CONTIGUOUS,
    ),
    "chunks": (stored_as(data=ZEROS, chunks=(4,)), NOT_CONTIGUOUS),
    "compact": (created(h5py.h5d.COMPACT, 127), NOT_CONTIGUOUS),
    "unknown filter": (
        stored_as(
            shape=(8,),
            dtype="float32",
            compression=32015,
            allow_unknown_filter=True,
        ),
        NOT_CONTIGUOUS,
    ),
    "no dataspace": (variable(h5py.Empty("float32")), "a shape is not"),
    "size zero": (
        variable(numpy.zeros((0, 3), "float32")),
        "float32 of shape",
    ),
    "string of variable length": (variable("text"), OTHER),
    "strings": (variable(numpy.array([b"text"] * 8)), OTHER),
    "opaque": (variable(numpy.zeros(8, "V8")), OTHER),
    "references": (stored_as(shape=(8,), dtype=h5py.ref_dtype), OTHER),
    "references to regions": (
        stored_as(shape=(8,), dtype=h5py.regionref_dtype),
        OTHER,
    ),
    "lists": (stored_as(shape=(8,), dtype=h5py.vlen_dtype("f4")), OTHER),
    "compound": (variable(numpy.zeros(8, "f4,f4")), OTHER),
    "complex64": (variable(numpy.zeros(8, "complex64")), OTHER),
    "custom float": (created(h5py.h5d.CONTIGUOUS, 99), OTHER),
    "big-endian": (variable(numpy.zeros(8, ">f4")), OTHER),
    "named type": (
        edited(lambda g, _: g.__setitem__("2", numpy.dtype("f4"))),
        "neither a group nor an array",
    ),
    "V2 without an attribute": (
        variable(numpy.zeros(8, "V2")),
        "attribute `dtype`",
    ),
    "attribute with another type": (
        edited(wrong_attribute),
        "attribute `dtype`",
    ),
    "attribute that is a number": (
        edited(lambda group, directory: group.attrs.__setitem__("a", 1)),
        "an attribute is not a string",
    ),
    "NaN": (variable(numpy.full(8, "nan", "float32")), "NaN or infinite"),
    "signalling NaN": (variable(SIGNALLING), "NaN or infinite"),
    "infinite": (variable(numpy.full(8, -numpy.inf, "float32")), "NaN or inf"),
    **{
        f"{dtype} against float32": (
            variable(numpy.zeros(8, dtype)),
            rf"float32 of shape \(8,\) against {dtype} of shape \(8,\)",
        )
        for dtype in ("float16", "float64", "int8", "bool")
    },
    "other shape": (
        variable(numpy.zeros((8, 1), "float32")),
        r"float32 of shape \(8,\) against float32 of shape \(8, 1\)",
    ),
    "scalar": (variable(numpy.float32(1)), r"against float32 of shape \(\)"),
    "variable is missing": (
        edited(lambda group, directory: group.__delitem__("1")),
        "layers/dense/vars/1: only in",
    ),
    "layer is missing": (
        edited(
            lambda group, directory: group.file.__delitem__("layers/dense_1")
        ),
        "layers/dense_1/vars/0: only in",
    ),
    "additional variable": (
        edited(lambda group, directory: group.__setitem__("2", ZEROS)),
        "layers/dense/vars/2: only in",
    ),
    "additional layer": (
        edited(lambda g, _: g.file.__setitem__("layers/a/vars/0", ZEROS)),
        "layers/a/vars/0: only in",
    ),
    "no variables": (
        edited(lambda group, directory: group.file.__delitem__("layers")),
        "only in",
    ),
    "integers that differ": (
        pair(numpy.int32([1, 2]), numpy.int32([1, 3])),
        "must be the same in all checkpoints",
    ),
    "int8 kernels that differ": (
        pair(numpy.ones(8, "int8"), numpy.zeros(8, "int8")),
        "before quantization",
    ),
    "name with an escape": (named("a\n\x1b[31m"), NAME),
    "name of 5000": (named("n" * 5000), NAME),
    "name that is not UTF-8": (named(b"\xff\xfe"), NAME),
    "name with a text direction": (named("\u202egnp"), NAME),
    "name ..": (
        patched(lambda data: data.replace(b"dense_1\0", b"..\0\0\0\0\0\0")),
        NAME,
    ),
    "name with a slash": (
        patched(lambda data: data.replace(b"dense_1\0", b"dense/1\0")),
        NAME,
    ),
    "two of one name": (
        patched(lambda data: data.replace(b"dense_1\0", b"dense\0\0\0")),
        "two objects have the name",
    ),
    "no bytes": (content(b""), START),
    "wrong magic": (
        patched(lambda data: data.__setitem__(slice(0, 8), b"\x89HDF\r\n\n\n")),
        START,
    ),
    "text": (content(b"weights: 1\n" * 99), START),
    "link to /etc/passwd": (link_to("/etc/passwd"), START),
    "link to a device": (link_to("/dev/zero"), "not a regular file"),
    "directory": (
        lambda directory: h5(directory).mkdir(),
        "not a regular file",
    ),
    "FIFO": (lambda directory: os.mkfifo(h5(directory)), "not a regular file"),
    "cut in half": (patched(lambda data: data[: len(data) // 2]), "cut off"),
    "16 bytes less": (patched(lambda data: data[:-16]), "cut off"),
    "cut in half and patched": (patched(cut), BOUNDS + "|is missing|damaged"),
    "user block": (patched(lambda data: None, userblock_size=512), START),
    "newest format": (patched(lambda data: None, libver="latest"), "version"),
    "200 flips": (flips(0, 200), "."),
    "tree in a cycle": (patched(tree_loop), TWICE + "|damaged"),
    "tree of 255 levels": (patched(tree_spiral), "tree of a group is damaged"),
    "tree of 65535 children": (at_each(b"TREE", 6, 65535, "H"), BOUNDS),
    "table of 65535 entries": (at_each(b"SNOD", 6, 65535, "H"), BOUNDS),
    "names of 2**60 bytes": (at_each(b"HEAP", 8, 2**60), BOUNDS),
    "names of 2**64 - 1 bytes": (at_each(b"HEAP", 8, UNDEFINED), BOUNDS),
    "names outside the file": (at_each(b"HEAP", 24, UNDEFINED), BOUNDS),
    "name without an end": (at_each(b"HEAP", 8, 12), "has no end"),
    "strings of 2**60 bytes": (at_each(b"GCOL", 8, 2**60), BOUNDS),
    "string of 2**60 bytes": (at_each(b"GCOL", 24, 2**60), "."),
    "string that overlaps others": (at_each(b"GCOL", 24, 4081), "is cut off"),
    "strings that are missing": (at_each(b"GCOL", 0, 0), "is missing"),
    "links in 65535 rows": (grafted(many_rows), "too many members"),
    "root outside the file": (
        patched(lambda data: put(data, ROOT, 2**63)),
        BOUNDS,
    ),
    "root that is an array": (array_for_root, "is a single array"),
    "root in the superblock": (
        patched(lambda data: put(data, ROOT, 0)),
        f"{OTHER}|{TWICE}",
    ),
    "header in a cycle": (continued(None, 24), TWICE),
    "header of 2**60 bytes": (continued(104, 2**60), BOUNDS),
    "header outside the file": (continued(UNDEFINED - 7, 64), BOUNDS),
    "header of 16 MiB": (grafted(empty_messages), "."),
    "names of half a GiB": (huge("names"), "."),
    "strings of half a GiB": (huge("strings"), "."),
    "header of half a GiB": (huge("header"), "."),
    "a million empty strings": (grafted(empty_strings), "."),
    "100000 attributes": (attributes(100_000, b"a"), "."),
    "attributes with one long string": (attributes(30_000, b"a" * 10**7), "."),
    "attribute beyond ASCII": (one_attribute("\xe9"), "attribute"),
    "attribute with an escape": (one_attribute("a\x1b[31m"), "attribute"),
    "attribute without a name": (one_attribute(""), "attribute"),
    "arrays that overlap": (
        with_addresses(_1=lambda old: old["0"] + 4),
        "share bytes",
    ),
    "arrays at one address": (
        with_addresses(_1=lambda old: old["0"]),
        "share bytes",
    ),
    "array over the superblock": (with_addresses(_1=0), "share bytes"),
    "array outside the file": (with_addresses(_1=2**63), BOUNDS),
    "array with a negative address": (with_addresses(_1=-8), BOUNDS),
    "file name with an escape": (terminal_escape, "same variables"),
}
ARCHIVES = {
    "not a zip archive": (content(b"PK\5\6", "bad.keras"), ZIP),
    "HDF5 file as .keras": (lambda f: valid_file(keras_file(f)), ZIP),
    "zip slip": (archive(**{".._.._evil": "x"}), "a member named"),
    "zip slip to the root": (archive(_evil="x"), "a member named"),
    "zip slip of Windows": (archive(**{"..\\evil": "x"}), "a member named"),
    "member with an escape": (archive(**{"\x1b[31m": "x"}), "a member named"),
    "two members of one name": (
        archive(
            lambda data: data.replace(b"model.weights.hX", MEMBER.encode()),
            **{"model.weights.hX": "x"},
        ),
        "two members of the same name",
    ),
    "too many members": (
        archive(**{str(i): "" for i in range(10_001)}),
        "too many members",
    ),
    "deflated bomb": (archive(bomb=bytes(10**8)), "declares"),
    "deflated bomb with a wrong size": (
        archive(central_directory("bomb", 24, 99), bomb=bytes(10**8)),
        ZIP,
    ),
    "weights deflated": (weights_deflated, "compressed or encrypted"),
    "weights with a size too large": (
        archive(central_directory(MEMBER, 24, 10**6)),
        "cut off",
    ),
    "weights with a size too small": (
        archive(central_directory(MEMBER, 24, 999)),
        "cut off",
    ),
    "weights encrypted": (
        archive(central_directory(MEMBER, 8, 1, "H")),
        "compressed or encrypted",
    ),
    "config encrypted": (
        archive(central_directory("config.json", 8, 1, "H")),
        ZIP,
    ),
    "config of a newer version of zip": (
        archive(central_directory("config.json", 6, 99, "H")),
        ZIP,
    ),
    "config with an unknown method": (
        archive(central_directory("config.json", 10, 99, "H")),
        f"{ZIP}|compress",
    ),
    "config with a wrong checksum": (
        archive(central_directory("config.json", 16, 1)),
        ZIP,
    ),
    "config at the end": (
        archive(central_directory("config.json", 42, 2**31)),
        f"{ZIP}|outside it",
    ),
    "weights at the end": (
        archive(central_directory(MEMBER, 42, 2**31)),
        f"{ZIP}|damaged|outside it",
    ),
    "weights before the file": (
        archive(shifted_central_directory),
        f"{ZIP}|damaged|outside it|before the file",
    ),
    "another member before the file": (
        archive(member_before_the_file),
        "before the file",
    ),
    "damaged deflate": (damaged(zipfile.ZIP_DEFLATED), ZIP),
    "damaged bzip2": (damaged(zipfile.ZIP_BZIP2), f"{ZIP}|compress"),
    "damaged LZMA": (damaged(zipfile.ZIP_LZMA), f"{ZIP}|compress"),
    "no weights": (
        archive(lambda data: data.replace(MEMBER.encode(), b"m" * 16)),
        "it has no model.weights.h5",
    ),
    "archive cut in half": (archive(lambda data: data[: len(data) // 2]), ZIP),
}
INDICES = {
    "shard in the parent directory": (
        mapped({"/a": ["../bad_00000.weights.h5"]}),
        SHARD,
    ),
    "shard with a path": (mapped({"/a": ["/etc/passwd"]}), SHARD),
    "shard with a newline": (
        mapped({"/a": ["bad_00000.weights.h5\n"]}),
        SHARD,
    ),
    "shard of another index": (mapped({"/a": ["x_00000.weights.h5"]}), SHARD),
    "shard with an escape": (mapped({"/a": ["\x1b[31m"]}), SHARD),
    "shard that is a number": (mapped({"/a": [1]}), SHARD),
    "map to numbers": (mapped({"/a": 1}), INDEX),
    "map that is a list": (mapped([1]), INDEX),
    "no map": (content(b"{}", "bad.weights.json"), INDEX),
    "no shards": (mapped({}), "shards"),
    "not JSON": (content(b"{", "bad.weights.json"), INDEX),
    "not UTF-8": (content(b'{"\xff": 1}', "bad.weights.json"), INDEX),
    "lists 100000 deep": (content(b"[" * 10**5, "bad.weights.json"), "deep"),
    "number of 10000 digits": (
        content(b"9" * 10**4, "bad.weights.json"),
        INDEX,
    ),
    "five million lists": (shards(wide), "."),
    "shard is missing": (
        shards(lambda path, found: found[1].unlink()),
        "No such file.*bad_00001.weights.h5",
    ),
    "shard is /etc/passwd": (shards(shard_outside), START),
    "shard is a FIFO": (shards(shard_is_fifo), "not a regular file"),
    "variable in two shards": (shards(in_two_shards), "another shard has it"),
    "index without a group": (
        shards(incomplete_index),
        "index of the shards differs",
    ),
    "index with an additional group": (
        mapped(
            {
                f"/{FIRST}": ["bad_00000.weights.h5"],
                "/a": ["bad_00001.weights.h5"],
            }
        ),
        "index of the shards differs",
    ),
    "group and variable of one name": (
        shards(group_and_array),
        "another shard",
    ),
}
REFUSED = {**WEIGHTS, **ARCHIVES, **INDICES}
"""Dict from names to a builder and a pattern of the error."""

AVERAGED = {
    "weights": lambda directory: valid_file(h5(directory), 1),
    "archive": lambda directory: valid_archive(keras_file(directory), 1),
    "shards": lambda directory: valid_shards(index_file(directory), 1),
    "3e38 everywhere": lambda directory: [
        valid_file(h5(directory, name), 1, 8e37) for name in ("first", "bad")
    ],
    "swapped names": edited(swapped_names),
    "equal integers": pair(numpy.int64(7), numpy.int64(7)),
    "empty variable": pair(*[numpy.zeros((0, 3), "float32")] * 2),
    "4000 variables": many(4000),
    **{
        f"provenance {number}": provenance(text)
        for number, text in enumerate(
            (
                "",
                "text",
                "[]",
                "{}",
                "[" * 10**5,
                "9" * 10**4,
                '{"checksum": 1, "sources": []}',
                '{"checksum": "", "sources": [1]}',
                FORGED % ('"\\u001b[31m"', '"1"'),
                FORGED % ('"a"', '"1e9999"'),
                FORGED % ("[]", "{}"),
                FORGED % (1, 10**400),
            )
        )
    },
    "names that are not ASCII": lambda directory: [
        valid_file(h5(directory, name), 1, layers=NOT_ASCII)
        for name in ("first", "bad")
    ],
    "link to weights": lambda directory: h5(directory).symlink_to(
        valid_file(directory / "bad.target.weights.h5", 1).name
    ),
}
FUZZED = {
    **{f"flip {seed}": flips(seed, 1) for seed in range(40)},
    **{f"5 flips {seed}": flips(seed, 5) for seed in range(40)},
    **{f"words {seed}": words(seed) for seed in range(80)},
    **{
        f"not ASCII, words {seed}": words(seed, NOT_ASCII) for seed in range(30)
    },
}
"""Files with random damage, which may be refused or averaged."""

SAMPLES = {
    **{name: build for name, (build, _) in REFUSED.items()},
    **AVERAGED,
    **FUZZED,
}


def write(parent):
    """Write a numbered directory for each sample, and a valid file."""
    valid_file(parent / "valid.weights.h5")
    for number, build in enumerate(SAMPLES.values()):
        directory = parent / f"{number:04}"
        directory.mkdir()
        build(directory)
