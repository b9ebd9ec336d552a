"""Crafted checkpoints that must be refused, and a few that must be averaged.

Each builder gets an empty folder and writes `bad.` and a suffix into it. Beside
it may be `first.` and a suffix, to be averaged with; else that is a sound file.
`hostile_worker.py` averages them.
"""

import json
import os
import random
import shutil
import struct
import zipfile

import h5py
import numpy

from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.hdf5.writing import metadata, place

SHAPES = {"dense": [(4, 8), (8,)], "dense_1": [(8, 1), (1,)]}
NEWER = SHAPES | {
    "schlüssel": [(1,)]
}  # Other names make another kind of group.
FIRST, SECOND = "layers/dense/vars", "layers/dense_1/vars"
END, ROOT = 40, 64  # Where a superblock says where the file ends and begins.
MEMBER = "model.weights.h5"
UNDEFINED = 2**64 - 1


# Sound files


def sound(path, seed=0, scale=1.0, layers=SHAPES, **options):
    """A file with the tree that Keras writes."""
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


def sound_archive(path, seed=0, compression=zipfile.ZIP_STORED, **members):
    """A `.keras` file, with more members, named with `_` for what is odd."""
    weights = sound(path.with_name("weights"), seed)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps({"name": "model"}) * 9)
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_DEFLATED)
        archive.write(weights, MEMBER, compression)
    weights.unlink()
    return path


def sound_shards(path, seed=0):
    """An index and two shards."""
    base = path.name.partition(".")[0]
    shards = [path.with_name(f"{base}_0000{i}.weights.h5") for i in (0, 1)]
    for shard, layer in zip(shards, SHAPES, strict=True):
        sound(shard, seed, layers={layer: SHAPES[layer]})
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


def h5(folder, name="bad"):
    return folder / f"{name}.weights.h5"


def keras_file(folder):
    return folder / "bad.keras"


def index_file(folder):
    return folder / "bad.weights.json"


# Edits of a sound file by h5py


def edited(change):
    """A file after `change(group, folder)` of one of its groups."""

    def build(folder):
        with h5py.File(sound(h5(folder), 1), "r+") as file:
            change(file[FIRST], folder)

    return build


def linked(make):
    """A file with a link of h5py more, and what it may lead to."""

    def change(group, folder):
        sound(folder / "victim.h5")
        os.mkfifo(folder / "fifo")
        group["2"] = make(folder)

    return edited(change)


def external(name, path="/" + FIRST):
    return linked(lambda folder: h5py.ExternalLink(folder / name, path))


def stored_as(**options):
    """A file with a variable that h5py creates with some options."""

    def change(group, folder):
        os.mkfifo(folder / "fifo")
        del group["1"]
        group.create_dataset("1", **options)

    return edited(change)


def variable(values):
    """A file with other values for a variable."""

    def change(group, folder):
        del group["1"]
        group["1"] = values

    return edited(change)


def both(*values):
    """Two files that have the same variable more, with different values."""

    def build(folder):
        for name, value in zip(("first", "bad"), values, strict=True):
            with h5py.File(sound(h5(folder, name), 1), "r+") as file:
                file[FIRST]["2"] = value

    return build


def virtual(group, folder):
    sound(folder / "victim.h5")
    layout = h5py.VirtualLayout((8,), "float32")
    layout[:] = h5py.VirtualSource(folder / "victim.h5", f"{FIRST}/1", (8,))
    del group["1"]
    group.create_virtual_dataset("1", layout)


def diamond(group, folder):
    for depth in range(30):
        below = group.create_group(f"a{depth}")
        group[f"b{depth}"] = below
        group = below


def deep(group, folder):
    for _ in range(3000):
        group = group.create_group("a")


def created(layout, bias):
    """A file with a variable of a layout, and of floats of a bias."""

    def change(group, folder):
        del group["1"]
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_ebias(bias)
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_obj_track_times(track_times=False)
        options.set_layout(layout)
        space = h5py.h5s.create_simple((8,))
        h5py.h5d.create(group.id, b"1", kind, space, options)

    return edited(change)


def lying_attribute(group, folder):
    group["1"].attrs["dtype"] = "bfloat16"


def long_paths(group, folder):
    for _ in range(58):
        group = group.create_group("n" * 1000)
    for number in range(10_000):
        group.create_group(str(number))


def named(name):
    return edited(lambda group, folder: group.create_group(name))


def provenance(text):
    return edited(lambda group, _: group.file.attrs.create("keras_wavg", text))


def swapped_names(group, folder):
    group.attrs["name"] = "dense_1"
    group.file[SECOND].attrs["name"] = "dense"


# Edits of the bytes of a sound file


def patched(change, **options):
    """A file after `change(bytearray)`, which may give other bytes back."""

    def build(folder):
        path = sound(h5(folder), 1, **options)
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or data)

    return build


def array_for_root(folder):
    path = sound(h5(folder), 1)
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
    """Each B-tree says that it is of level 1, and that it is its own child."""
    for at in found(data, b"TREE"):
        put(data, at + 4, 0, 1, layout="B")
        put(data, at + 6, 1, layout="H")
        put(data, at + 32, at)


def tree_spiral(data):
    """A B-tree of 256 levels in the bytes of one, each in the one above."""
    (at, *_) = found(data, b"TREE")
    put(data, at + 5, 255, layout="B")


def at_each(signature, offset, value, layout="Q"):
    """A patch of all that begins with a signature."""

    def change(data):
        for at in found(data, signature):
            put(data, at + offset, value, layout=layout)

    return patched(change)


def found(data, signature):
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
    """One to three odd numbers of eight bytes in the place of others."""

    def change(data):
        rng = random.Random(seed)  # noqa: S311
        size = len(data)
        odd = [0, 1, 8, 96, size - 8, size, 2**31, 2**32, 2**63, UNDEFINED]
        for _ in range(rng.randint(1, 3)):
            put(data, 8 * rng.randrange(size // 8), rng.choice(odd))

    return patched(change, layers=layers)


# Objects that no library would write


def message(kind, body):
    body += bytes(-len(body) % 8)
    return struct.pack("<2HB3x", kind, len(body), 0) + body


def header(body, size=None):
    length = len(body) if size is None else size
    return struct.pack("<2BH2I4x", 1, 0, 0, 1, length) + body


def attribute(name, collection, length=1):
    """An attribute whose text is the first of a collection."""
    text = name.encode() + b"\0"
    padded = text + bytes(-len(text) % 8)
    kind = bytes.fromhex("19010100 10000000 10000000 01000000 00000800")
    place = struct.pack("<IQI", length, collection, 1)
    sizes = struct.pack("<Bx3H", 1, len(text), 20, 8)
    space = bytes([1, 0, 0, 0, 0, 0, 0, 0])
    return message(12, sizes + padded + kind + bytes(4) + space + place)


def collection(text):
    text += bytes(-len(text) % 8)
    size = 16 + 16 + len(text) + 16
    head = struct.pack("<4sB3xQ2H4xQ", b"GCOL", 1, size, 1, 1, len(text))
    return head + text + bytes(16)


def grafted(make, where=FIRST, size=None):
    """A file in which other bytes stand for a group.

    `make(at, group)` gives them, `at` being where they will be and `group` the
    message of the group; and where in them its header begins. Its end is
    nothing but zeros if `size` is greater: they take no room on a disk.
    """

    def build(folder):
        path = sound(h5(folder), 1)
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
        # The header may go on elsewhere.
        (at,) = (
            struct.unpack_from("<Q", data, at + 8)
            if kind == 16
            else (at + 8 + size,)
        )


def attributes(count, text):
    """A group with so many attributes that have one long text."""

    def make(at, group):
        kept = collection(text)
        body = b"".join(
            attribute(f"{i:x}", at, len(text)) for i in range(count)
        )
        return kept + header(group + body), len(kept)

    return grafted(make)


def one_attribute(name):
    def make(at, group):
        kept = collection(b"text")
        return kept + header(group + attribute(name, at)), len(kept)

    return grafted(make)


def empty_texts(at, group):
    """A collection of a million texts of no length."""
    count = 1_000_000
    texts = struct.pack("<2H4xQ", 7, 1, 0) * count
    kept = struct.pack("<4sB3xQ", b"GCOL", 1, 16 + len(texts)) + texts
    return kept + header(group + attribute("name", at)), len(kept)


def many_rows(at, group):
    """A group of the newer kind whose links are in a heap of 65535 rows."""
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
    """A header that goes on at an address, or at its own, for so long."""

    def make(at, group):
        place, length = numbers
        place = at + 16 if place is None else place
        return header(message(16, struct.pack("<2Q", place, length))), 0

    return grafted(make)


def endless(part):
    """A part of a group that takes a whole file of half a gibibyte, sparse."""
    size = 1 << 29

    def make(at, group):
        rest = size - at - 256
        if part == "header":
            more = message(16, struct.pack("<2Q", at + 256, rest))
            return header(more + group), 0
        if part == "texts":
            kept = struct.pack("<4sB3xQ", b"GCOL", 1, rest) + bytes(16)
            return kept + header(group + attribute("name", at)), len(kept)
        heap = struct.pack("<4sB3x3Q", b"HEAP", 0, rest, 1, at + 64)
        group = message(17, group[8:16] + struct.pack("<Q", at))
        return heap + header(group), len(heap)

    return grafted(make, size=size)


def pointing(**places):
    """A file whose arrays are at other places, by their names in a group."""

    def build(folder):
        path = sound(h5(folder), 1)
        with h5py.File(path) as file:
            old = {n: d.id.get_offset() for n, d in file[FIRST].items()}
            sizes = {n: d.nbytes for n, d in file[FIRST].items()}
        data = path.read_bytes()
        for name, other in places.items():
            key = name.strip("_")
            new = other(old) if callable(other) else other
            data = data.replace(
                struct.pack("<2Q", old[key], sizes[key]),
                struct.pack("<2Q", new % 2**64, sizes[key]),
            )
        path.write_bytes(data)

    return build


def many(count):
    """Two files of so many variables."""

    def build(folder):
        names = [f"layers/dense_{i}/vars" for i in range(count // 2)]
        groups = {"": {}, "layers": {}}
        for name in names:
            groups |= {name.rpartition("/")[0]: {}, name: {}}
        arrays = {
            f"{n}/{i}": Array("float32", (1,)) for n in names for i in (0, 1)
        }
        structure, end = place(Structure(groups, arrays))
        head, tail = metadata(structure, end)
        h5(folder).write_bytes(head.ljust(end, b"\0") + tail)
        shutil.copy(h5(folder), h5(folder, "first"))

    return build


# Other files than HDF5


def content(data, name="bad.weights.h5"):
    return lambda folder: (folder / name).write_bytes(data)


def link_to(target):
    return lambda folder: h5(folder).symlink_to(target)


def archive(change=None, **members):
    """A `.keras` file after `change(bytearray)`, with more members."""

    def build(folder):
        names = {name.replace("_", "/"): c for name, c in members.items()}
        path = sound_archive(keras_file(folder), 1, **names)
        if change:
            data = bytearray(path.read_bytes())
            path.write_bytes(change(data) or data)

    return build


def directory(name, offset, value, layout="I"):
    """A patch of what the directory of an archive says about a member."""

    def change(data):
        at = data.rindex(name.encode()) - 46
        put(data, at + offset, value, layout=layout)

    return change


def damaged(method):
    """A `.keras` file with a member whose compressed bytes are damaged."""

    def build(folder):
        path = sound_archive(keras_file(folder), 1)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("assets/a", bytes(range(256)) * 9, method)
        data = bytearray(path.read_bytes())
        at = data.index(b"assets/a") + 8
        data[at : at + 40] = b"\xff" * 40
        path.write_bytes(data)

    return build


def weights_deflated(folder):
    sound_archive(keras_file(folder), 1, zipfile.ZIP_DEFLATED)


def directory_of_itself(data):
    """The directory is said to be further back than it is."""
    at = data.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", data, at + 16)
    put(data, at + 16, offset + 1000, layout="I")


def another_before_the_file(data):
    """The weights are where they are said to be, all others are not."""
    at = data.rindex(b"PK\5\6")
    (offset,) = struct.unpack_from("<I", data, at + 16)
    put(data, at + 16, offset + 1, layout="I")
    at = data.rindex(MEMBER.encode()) - 46
    (offset,) = struct.unpack_from("<I", data, at + 42)
    put(data, at + 42, offset + 1, layout="I")


def shards(change):
    """An index and shards after `change(index, shards)`."""

    def build(folder):
        change(index_file(folder), sound_shards(index_file(folder), 1))

    return build


def mapped(weight_map):
    return shards(lambda path, found: index(path, weight_map))


def in_two_shards(path, found):
    sound(found[0], layers=SHAPES)
    sound(found[1], layers=SHAPES)
    names = [shard.name for shard in found]
    index(path, {f"/{FIRST}": names, f"/{SECOND}": names})


def group_and_array(path, found):
    """What is an array in one shard is a group in another."""
    with h5py.File(found[0], "w") as file:
        file["a/vars"] = numpy.zeros(3, "float32")
    with h5py.File(found[1], "w") as file:
        file["a/vars/0"] = numpy.zeros(3, "float32")
    index(path, {"/a": [found[0].name], "/a/vars": [found[1].name]})
    for file in (*found, path):
        text = file.read_bytes().replace(b"bad_", b"first_")
        file.with_name(file.name.replace("bad", "first")).write_bytes(text)


def shard_elsewhere(path, found):
    found[1].unlink()
    found[1].symlink_to("/etc/passwd")


def shard_is_fifo(path, found):
    found[1].unlink()
    os.mkfifo(found[1])


def index_says_less(path, found):
    index(path, {f"/{FIRST}": [s.name for s in found]})


def terminal_escape(folder):
    sound(folder / "bad\x1b[31m\n.weights.h5", layers={"conv": [(2, 2)]})


def wide(path, found):
    text = "[" + "[]," * 5_000_000 + "[]]"
    path.write_text('{"weight_map": {}, "metadata": ' + text + "}")


OTHER = "an object is neither|not as Keras writes|of numbers as Keras saves"
LINK = "there is a link|newer kind"
PIECES = "not in one piece|compressed|neither a group nor an array"
BOUNDS = "bytes are in the file|come to an end|outside of itself|too long"
PLAIN = "is not a plain text"
TWICE = "by two paths, or in a cycle"
START = "does not begin as an HDF5 file"
ZIP = "not a sound zip archive"
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
    "soft link": (linked(lambda folder: h5py.SoftLink("1")), LINK),
    "soft link to itself": (linked(lambda folder: h5py.SoftLink("2")), LINK),
    "soft link to nothing": (linked(lambda folder: h5py.SoftLink("no")), LINK),
    "soft link out": (linked(lambda _: h5py.SoftLink("/../../x")), LINK),
    "hard link in a circle": (
        edited(lambda group, folder: group.__setitem__("2", group.parent)),
        TWICE,
    ),
    "hard link to the same": (
        edited(lambda group, folder: group.__setitem__("2", group["1"])),
        TWICE,
    ),
    "hard links of 2**30 paths": (edited(diamond), TWICE),
    "groups 3000 deep": (edited(deep), "more than 64 deep"),
    "a gibibyte of paths": (edited(long_paths), "."),
    "shape of 4 PiB": (stored_as(shape=(2**50,), dtype="float32"), BOUNDS),
    "shape of 64 GiB": (stored_as(shape=(2**18,) * 2, dtype="uint8"), BOUNDS),
    "shape of 4 GB, gzip": (
        stored_as(shape=(10**9,), dtype="float32", compression="gzip"),
        PIECES,
    ),
    "unallocated": (stored_as(shape=(2**28,), dtype="float32"), BOUNDS),
    "gzip bomb": (
        stored_as(data=numpy.zeros(1 << 24, "float32"), compression="gzip"),
        PIECES,
    ),
    "chunks and gzip": (stored_as(data=ZEROS, compression="gzip"), PIECES),
    "chunks": (stored_as(data=ZEROS, chunks=(4,)), PIECES),
    "compact": (created(h5py.h5d.COMPACT, 127), PIECES),
    "unknown filter": (
        stored_as(
            shape=(8,),
            dtype="float32",
            compression=32015,
            allow_unknown_filter=True,
        ),
        PIECES,
    ),
    "no dataspace": (variable(h5py.Empty("float32")), "a shape is not"),
    "size zero": (
        variable(numpy.zeros((0, 3), "float32")),
        "float32 of shape",
    ),
    "text of variable length": (variable("text"), OTHER),
    "texts": (variable(numpy.array([b"text"] * 8)), OTHER),
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
    "V2 without an attribute": (variable(numpy.zeros(8, "V2")), "`dtype` says"),
    "attribute that lies": (edited(lying_attribute), "`dtype` says"),
    "attribute that is a number": (
        edited(lambda group, folder: group.attrs.__setitem__("a", 1)),
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
        edited(lambda group, folder: group.__delitem__("1")),
        "layers/dense/vars/1: only in",
    ),
    "layer is missing": (
        edited(lambda group, folder: group.file.__delitem__("layers/dense_1")),
        "layers/dense_1/vars/0: only in",
    ),
    "variable too many": (
        edited(lambda group, folder: group.__setitem__("2", ZEROS)),
        "layers/dense/vars/2: only in",
    ),
    "layer too many": (
        edited(lambda g, _: g.file.__setitem__("layers/a/vars/0", ZEROS)),
        "layers/a/vars/0: only in",
    ),
    "no variables": (
        edited(lambda group, folder: group.file.__delitem__("layers")),
        "only in",
    ),
    "integers that differ": (
        both(numpy.int32([1, 2]), numpy.int32([1, 3])),
        "must be the same in all checkpoints",
    ),
    "int8 kernels that differ": (
        both(numpy.ones(8, "int8"), numpy.zeros(8, "int8")),
        "before quantization",
    ),
    "name with an escape": (named("a\n\x1b[31m"), PLAIN),
    "name of 5000": (named("n" * 5000), PLAIN),
    "name that is not UTF-8": (named(b"\xff\xfe"), PLAIN),
    "name that turns around": (named("\u202egnp"), PLAIN),
    "name ..": (
        patched(lambda data: data.replace(b"dense_1\0", b"..\0\0\0\0\0\0")),
        PLAIN,
    ),
    "name with a slash": (
        patched(lambda data: data.replace(b"dense_1\0", b"dense/1\0")),
        PLAIN,
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
    "folder": (lambda folder: h5(folder).mkdir(), "not a regular file"),
    "FIFO": (lambda folder: os.mkfifo(h5(folder)), "not a regular file"),
    "cut in half": (patched(lambda data: data[: len(data) // 2]), "cut off"),
    "16 bytes less": (patched(lambda data: data[:-16]), "cut off"),
    "cut in half and patched": (patched(cut), BOUNDS + "|is missing|damaged"),
    "user block": (patched(lambda data: None, userblock_size=512), START),
    "newest format": (patched(lambda data: None, libver="latest"), "version"),
    "200 flips": (flips(0, 200), "."),
    "tree in a circle": (patched(tree_loop), TWICE + "|damaged"),
    "tree of 255 levels": (patched(tree_spiral), "tree of a group is damaged"),
    "tree of 65535 children": (at_each(b"TREE", 6, 65535, "H"), BOUNDS),
    "table of 65535 entries": (at_each(b"SNOD", 6, 65535, "H"), BOUNDS),
    "names of 2**60 bytes": (at_each(b"HEAP", 8, 2**60), BOUNDS),
    "names of 2**64 - 1 bytes": (at_each(b"HEAP", 8, UNDEFINED), BOUNDS),
    "names elsewhere": (at_each(b"HEAP", 24, UNDEFINED), BOUNDS),
    "name without an end": (at_each(b"HEAP", 8, 12), "has no end"),
    "texts of 2**60 bytes": (at_each(b"GCOL", 8, 2**60), BOUNDS),
    "text of 2**60 bytes": (at_each(b"GCOL", 24, 2**60), "."),
    "text that goes on past the others": (at_each(b"GCOL", 24, 4081), "short"),
    "texts that are missing": (at_each(b"GCOL", 0, 0), "is missing"),
    "links in 65535 rows": (grafted(many_rows), "too many members"),
    "root elsewhere": (
        patched(lambda data: put(data, ROOT, 2**63)),
        BOUNDS,
    ),
    "root that is an array": (array_for_root, "is one array"),
    "root in the superblock": (
        patched(lambda data: put(data, ROOT, 0)),
        f"{OTHER}|{TWICE}",
    ),
    "header in a circle": (continued(None, 24), TWICE),
    "header of 2**60 bytes": (continued(104, 2**60), BOUNDS),
    "header elsewhere": (continued(UNDEFINED - 7, 64), BOUNDS),
    "header of 16 MiB": (grafted(empty_messages), "."),
    "names of half a GiB": (endless("names"), "."),
    "texts of half a GiB": (endless("texts"), "."),
    "header of half a GiB": (endless("header"), "."),
    "a million empty texts": (grafted(empty_texts), "."),
    "100000 attributes": (attributes(100_000, b"a"), "."),
    "attributes of one long text": (attributes(30_000, b"a" * 10**7), "."),
    "attribute beyond ASCII": (one_attribute("\xe9"), "attribute"),
    "attribute with an escape": (one_attribute("a\x1b[31m"), "attribute"),
    "attribute without a name": (one_attribute(""), "attribute"),
    "arrays that overlap": (
        pointing(_1=lambda old: old["0"] + 4),
        "share bytes",
    ),
    "arrays at one place": (pointing(_1=lambda old: old["0"]), "share bytes"),
    "array over the superblock": (pointing(_1=0), "share bytes"),
    "array elsewhere": (pointing(_1=2**63), BOUNDS),
    "array around the end": (pointing(_1=-8), BOUNDS),
    "file name with an escape": (terminal_escape, "same variables"),
}
ARCHIVES = {
    "not a zip archive": (content(b"PK\5\6", "bad.keras"), ZIP),
    "HDF5 file as .keras": (lambda f: sound(keras_file(f)), ZIP),
    "zip slip": (archive(**{".._.._evil": "x"}), "a member named"),
    "zip slip to the root": (archive(_evil="x"), "a member named"),
    "zip slip of Windows": (archive(**{"..\\evil": "x"}), "a member named"),
    "member with an escape": (archive(**{"\x1b[31m": "x"}), "a member named"),
    "two members of one name": (
        archive(
            lambda data: data.replace(b"model.weights.hX", MEMBER.encode()),
            **{"model.weights.hX": "x"},
        ),
        "two members of one name",
    ),
    "too many members": (
        archive(**{str(i): "" for i in range(10_001)}),
        "too many members",
    ),
    "deflated bomb": (archive(bomb=bytes(10**8)), "promises"),
    "deflated bomb that lies": (
        archive(directory("bomb", 24, 99), bomb=bytes(10**8)),
        ZIP,
    ),
    "weights deflated": (weights_deflated, "compressed or encrypted"),
    "weights that lie": (
        archive(directory(MEMBER, 24, 10**6)),
        "cut off",
    ),
    "weights said to be short": (
        archive(directory(MEMBER, 24, 999)),
        "cut off",
    ),
    "weights encrypted": (
        archive(directory(MEMBER, 8, 1, "H")),
        "compressed or encrypted",
    ),
    "config encrypted": (archive(directory("config.json", 8, 1, "H")), ZIP),
    "config of a newer zip": (
        archive(directory("config.json", 6, 99, "H")),
        ZIP,
    ),
    "config by an unknown method": (
        archive(directory("config.json", 10, 99, "H")),
        f"{ZIP}|compress",
    ),
    "config of another checksum": (
        archive(directory("config.json", 16, 1)),
        ZIP,
    ),
    "config at the end": (
        archive(directory("config.json", 42, 2**31)),
        f"{ZIP}|outside of itself",
    ),
    "weights at the end": (
        archive(directory(MEMBER, 42, 2**31)),
        f"{ZIP}|damaged|outside of itself",
    ),
    "weights before the beginning": (
        archive(directory_of_itself),
        f"{ZIP}|damaged|outside of itself|before the file",
    ),
    "another member before the beginning": (
        archive(another_before_the_file),
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
    "shard above": (mapped({"/a": ["../bad_00000.weights.h5"]}), SHARD),
    "shard with a path": (mapped({"/a": ["/etc/passwd"]}), SHARD),
    "shard with a line more": (
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
    "shard is /etc/passwd": (shards(shard_elsewhere), START),
    "shard is a FIFO": (shards(shard_is_fifo), "not a regular file"),
    "variable in two shards": (shards(in_two_shards), "another shard has it"),
    "index that says less": (shards(index_says_less), "says otherwise"),
    "index that says more": (
        mapped(
            {
                f"/{FIRST}": ["bad_00000.weights.h5"],
                "/a": ["bad_00001.weights.h5"],
            }
        ),
        "says otherwise",
    ),
    "group and variable of one name": (
        shards(group_and_array),
        "another shard",
    ),
}
REFUSED = {**WEIGHTS, **ARCHIVES, **INDICES}
"""From a name to a builder and what the error says."""

AVERAGED = {
    "weights": lambda folder: sound(h5(folder), 1),
    "archive": lambda folder: sound_archive(keras_file(folder), 1),
    "shards": lambda folder: sound_shards(index_file(folder), 1),
    "3e38 everywhere": lambda folder: [
        sound(h5(folder, name), 1, 8e37) for name in ("first", "bad")
    ],
    "swapped names": edited(swapped_names),
    "integers that are the same": both(numpy.int64(7), numpy.int64(7)),
    "nothing in a variable": both(*[numpy.zeros((0, 3), "float32")] * 2),
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
    "names that are not ASCII": lambda folder: [
        sound(h5(folder, name), 1, layers=NEWER) for name in ("first", "bad")
    ],
    "link to weights": lambda folder: h5(folder).symlink_to(
        sound(folder / "bad.target.weights.h5", 1).name
    ),
}
FUZZED = {
    **{f"flip {seed}": flips(seed, 1) for seed in range(40)},
    **{f"5 flips {seed}": flips(seed, 5) for seed in range(40)},
    **{f"words {seed}": words(seed) for seed in range(80)},
    **{f"newer, words {seed}": words(seed, NEWER) for seed in range(30)},
}
"""Damaged at random: refused or averaged."""

SAMPLES = {
    **{name: build for name, (build, _) in REFUSED.items()},
    **AVERAGED,
    **FUZZED,
}


def write(parent):
    """A folder for each sample, by its number, and a sound file in `parent`."""
    sound(parent / "sound.weights.h5")
    for number, build in enumerate(SAMPLES.values()):
        folder = parent / f"{number:04}"
        folder.mkdir()
        build(folder)
