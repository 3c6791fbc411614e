"""Damage by intent: files that are what they should be, and would cost what no file may, or are no files at all.

Each function is handed the folder of a case, in which `benchmarks.fuzz` puts two runs, a grid, a folder of pictures and
one of parquet files, and a generator of numbers.
"""

from __future__ import annotations

import functools
import io
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

DEPTHS = (10, 60, 70, 1_000, 100_000)


def laughs(draw: random.Random) -> Any:
    """Lists, tuples or dicts that hold the next one twice, or one that holds itself."""
    value: Any = ["ha", "ha"]
    kind = draw.choice(["list", "tuple", "dict", "key", "self", "deep"])
    for _ in range(draw.choice([3, 30, 60])):
        if kind in ("list", "self"):
            value = [value, value]
        elif kind == "dict":
            value = {"a": value, "b": value}
        else:
            value = (value, value)
    if kind == "key":
        value = ("ha", "ha")
        for _ in range(draw.choice([3, 25])):
            value = (value, value)
        return {value: 1}
    if kind == "self":
        value.append(value)
    if kind == "deep":
        value = []
        for _ in range(draw.choice([50, 200, 800])):
            value = [value]
    return value


def pickle(place: Path, draw: random.Random) -> None:
    """A checkpoint whose small pickle unfolds without end."""
    paths = sorted(place.glob("run/checkpoints/step-*.pt"))
    path = draw.choice(paths)
    state = torch.load(path, weights_only=True)
    homes = [state, state["recorder"], state["optimizer"], state["scheduler"], *state["optimizer"]["param_groups"]]
    home = draw.choice(homes)
    home[draw.choice(sorted(map(str, home)))] = laughs(draw)
    torch.save(state, path)


def opcodes(place: Path, draw: random.Random) -> None:
    """A checkpoint whose pickle makes a million small things, or is cut somewhere."""
    import zipfile

    path = draw.choice(sorted(place.glob("run/checkpoints/step-*.pt")))
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in content if name.endswith("/data.pkl"))
    many = draw.choice([b"}", b"]", b"(", b")0", b"]a", b"}q\x01", b"ccollections\nOrderedDict\n)R", b"cos\nsystem\n"])
    place_in = draw.choice([2, len(content[name]) - 1, draw.randrange(len(content[name]))])
    some = many * draw.choice([1, 1000, 1_200_000 // len(many)])
    content[name] = content[name][:place_in] + some + content[name][place_in:]
    with zipfile.ZipFile(
        path, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as archive:
        for entry, data in content.items():
            archive.writestr(entry, data)


def footer(place: Path, draw: random.Random) -> None:
    """A part whose footer holds JSON of any depth, a foreign note, flipped bytes, or claims what isn't there."""
    path = draw.choice(sorted(place.glob("run/trace/*/part-*.parquet")))
    depth = draw.choice(DEPTHS)
    notes = [
        "[" * depth + "]" * depth,
        '{"a":' * depth + "1" + "}" * depth,
        "[" * depth,
        '{"table": ' + '"' + "x" * depth + '"}',
        '{"schema_version": ' + "9" * depth + "}",
        '{"schema_version": 1, "table": "steps", "run_id": "\\ud800"}',
        '{"schema_version": 1, "table": ["layers"], "run_id": {}}',
        "\\" * depth,
    ]
    if draw.random() < 0.6:
        rows = pq.read_table(path)
        pq.write_table(rows.replace_schema_metadata({"tvlars_probe": draw.choice(notes)}), path)
        return
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    for _ in range(draw.choice([1, 3])):
        content[len(content) - 8 - draw.randrange(length + 1)] = draw.randrange(256)
    if draw.random() < 0.2:
        content[-8:-4] = draw.randbytes(4)
    path.write_bytes(content)


def dictionary(place: Path, draw: random.Random) -> None:
    """A part whose page of names has other bytes."""
    path = draw.choice(sorted(place.glob("run/trace/*/part-*.parquet")))
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    column: Any = draw.choice([column for column in columns if column.has_dictionary_page])
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 2, 8])):
        content[column.dictionary_page_offset + draw.randrange(column.total_compressed_size)] = draw.randrange(256)
    path.write_bytes(content)


def rows(place: Path, draw: random.Random) -> None:
    """A part whose rows say what no run can: far steps, many tensors, no numbers."""
    path = draw.choice(sorted(place.glob("run/trace/*/part-*.parquet")))
    table = pq.read_table(path)
    name = draw.choice(table.column_names)
    kind = table.schema.field(name).type
    column: Any
    if pa.types.is_dictionary(kind):
        names = [draw.choice(["", "\x00", "é" * 3, "x" * 10_000, "\N{PILE OF POO}", "a.b"]) for _ in range(len(table))]
        column = pa.array(names).dictionary_encode().cast(kind)
    elif pa.types.is_floating(kind):
        column = pa.array([draw.choice([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30]) for _ in range(len(table))], kind)
    else:
        column = pa.nulls(len(table), kind)
        if pa.types.is_integer(kind):
            column = pa.array([draw.choice([-1, 0, 1, 1 << 40, (1 << 63) - 1]) for _ in range(len(table))], kind)
    field = table.schema.field(name).with_nullable(True)
    pq.write_table(table.set_column(table.column_names.index(name), field, column), path)


def manifest(place: Path, draw: random.Random) -> None:
    """A manifest that nests, repeats or claims more than a run can have."""
    path = place / "run" / "run.json"
    stored = json.loads(path.read_text())
    far, depth = draw.choice([10**6, 10**9, 10**15, (1 << 62)]), draw.choice(DEPTHS)
    kind = draw.choice(["deep", "far", "epochs", "tensors", "gaps", "surrogate", "long", "utf-16", "huge", "constants"])
    if kind == "deep":
        text = path.read_text().rstrip().removesuffix("}")
        path.write_text(f'{text}, "config": {"[" * depth}{"]" * depth}}}')
        return
    if kind == "utf-16":
        path.write_bytes(path.read_text().encode("utf-16"))
        return
    if kind == "huge":
        path.write_text('{"run_id": "r", "notes": [' + "[]," * draw.choice([1000, 5_000_000]) + "[]]}")
        return
    if kind == "far":
        stored |= {"total_steps": far, "steps_per_epoch": far, "status": "completed"}
        stored["segments"] = [{"first_step": 0, "last_step": far}]
    elif kind == "epochs":
        for phase in stored["phases"]:
            phase |= {"epochs": far, "steps_per_epoch": 1}
    elif kind == "tensors":
        # A few of them: an earlier damage of this kind may have made thousands, and a product of two fills the memory.
        entries = next(iter(stored["parameters"].values()))[:8]
        stored["parameters"] = {name: entries * draw.choice([2, 3000]) for name in stored["parameters"]}
    elif kind == "gaps":
        gap = {"table": draw.choice(["steps", "epochs"]), "first_step": 0, "last_step": far, "reason": "x"}
        stored["gaps"] = [gap | {"first_step": index, "last_step": index + 1} for index in range(20_000)] + [gap]
    elif kind == "surrogate":
        for entries in stored["parameters"].values():
            entries[0] |= {"name": "w\ud800", "layer": "\udce9", "kind": "\udfff"}
        stored["notes"] = ["\udc80"]
    elif kind == "long":
        stored["notes"], stored["status"] = ["x" * 1_000_000] * 3, "y" * 1_000_000
    else:
        stored |= {"peak_lr": "nan", "batch_size": 0, "steps_per_epoch": 0, "total_steps": 0, "world_size": 0}
    path.write_text(json.dumps(stored))


def special(place: Path, draw: random.Random) -> None:
    """A FIFO, a socket, a folder, or a link to a device, where a file is expected."""
    paths = sorted(p for p in place.rglob("*") if p.is_file() and "other" not in p.parts)
    path = draw.choice(paths)
    path.unlink()
    kind = draw.choice(["fifo", "fifo", "socket", "folder", "zero", "loop"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            # The path of a socket is short: it is made from within the folder.
            there = os.open(path.parent, os.O_RDONLY)
            try:
                made.bind(f"/proc/self/fd/{there}/s")
                (path.parent / "s").rename(path)
            finally:
                os.close(there)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else path.name)


def toml(place: Path, draw: random.Random) -> None:
    """A grid of any number of points, or TOML that nests."""
    depth, names = draw.choice(DEPTHS), ["lr", "seed", "bs", "epochs", "wd", "opt", "x"]
    values = ["1", "0.1", '"lars"', "nan", "0x" + "f" * 5000, "1979-05-27", '"\\u0000"', "[1]", "{a = 1}", "true"]
    axes = [f"{name} = [{', '.join(draw.choice(values) for _ in range(draw.choice([0, 1, 3, 60])))}]" for name in names]
    texts = [
        "[grid]\n" + "\n".join(draw.sample(axes, draw.randrange(1, 7))),
        "[grid]\n"
        + "".join(f"{name} = [{', '.join('123456789')}]\n" for name in ["lr", "seed", "bs", "epochs", "wd", "eta"]),
        "a = " + "[" * depth + "]" * depth,
        ".".join(["a"] * depth) + " = 1",
        "[" + ".".join(['"a"'] * depth) + "]",
        "a = " + "{a = " * depth + "1" + "}" * depth,
        '[settings]\nopt = """' + "x" * depth,
        "[grid]\n" + "#" * depth,
        "'''" * depth,
    ]
    (place / "grid.toml").write_text(draw.choice(texts))


@functools.cache
def _encoded(size: tuple[int, int], mode: str = "RGB", form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, form)
    return stream.getvalue()


def _picture(draw: random.Random) -> bytes:
    size = draw.choice([(1, 2_000_000), (2_000_000, 1), (1, 1), (3000, 3000), (9000, 9000), (10_000, 10_000)])
    content = _encoded(size, draw.choice(["RGB", "L", "1", "P", "RGBA", "I;16"]))
    return content if draw.random() < 0.7 else content[: draw.randrange(len(content))]


def images(place: Path, draw: random.Random) -> None:
    """Pictures of sizes that no data set has."""
    for path in sorted(place.glob("pictures/*/*/*.png")):
        if draw.random() < 0.4:
            path.write_bytes(_picture(draw))


def parquet_images(place: Path, draw: random.Random) -> None:
    """Parquet files of pictures without bytes, or with labels that are none."""
    kinds: list[Any] = [
        pa.array([0, None]), pa.array(["cat", "dog"]), pa.array([0, (1 << 63) - 1]),
        pa.array([0, 1 << 63], pa.uint64()), pa.array([0.0, float("nan")]), pa.array([0.0, 0.5]), pa.array([-1, 0]),
        pa.array([False, True]), pa.array([0, 1]), pa.array([[0], [1]]), pa.nulls(2),
    ]  # fmt: skip
    small, odd = _encoded((8, 8)), _picture(draw)
    contents: list[list[Any]] = [[small, None], [None] * 2, [small] * 2, [small, b""], [odd, small], [small, odd]]
    form = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows_of = [{"bytes": one, "path": "x"} for one in draw.choice(contents)]
    chosen = [None if one["bytes"] is None and draw.random() < 0.5 else one for one in rows_of]
    table = pa.table({"image": pa.array(chosen, form), "label": draw.choice(kinds)})
    if draw.random() < 0.2:
        table = table.set_column(0, "image", pa.array(["x", "y"]))
    pq.write_table(table, place / "parquets" / f"{draw.choice(['train', 'valid'])}-0.parquet")


HOSTILE: dict[str, Callable[[Path, random.Random], None]] = {
    "footer": footer,
    "dictionary": dictionary,
    "rows": rows,
    "manifest of a stranger": manifest,
    "special": special,
    "pickle": pickle,
    "opcodes": opcodes,
    "toml": toml,
    "images": images,
    "parquet images": parquet_images,
}
"""By name, what is done to the folder of a case."""

OF_RUNS = ("footer", "dictionary", "rows", "manifest of a stranger", "special")
OF_CHECKPOINTS = ("pickle", "opcodes")


def pictures(folder: Path) -> None:
    """An image folder of two classes."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                (folder / part / name / f"{number}.png").write_bytes(_encoded((8, 8)))


def parquets(folder: Path) -> None:
    """Parquet files as `tvlars-probe data import-tiny-imagenet` takes them."""
    folder.mkdir()
    table = pa.table({"image": [{"bytes": _encoded((8, 8)), "path": "x"}] * 2, "label": [0, 1]})
    for part in ("train", "valid"):
        pq.write_table(table, folder / f"{part}-0.parquet")
