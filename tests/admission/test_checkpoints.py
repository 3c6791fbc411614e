"""Archives and pickles of checkpoints that cost more than their tensors' own bytes."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from tvlars_probe.admission import limits
from tvlars_probe.admission.checkpoints import pickle_excess, refuse_costly_checkpoint
from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from pathlib import Path


def refusal(path: Path) -> str | None:
    with path.open("rb") as stream:
        try:
            refuse_costly_checkpoint(stream, path)
        except RefusedFileError as error:
            return error.reason
        assert stream.tell() == 0
    return None


def rewritten(path: Path, change: Any, packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content = change(content)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"w": torch.arange(100), "x": [1, "two", None]}, tmp_path / "c.pt")
    return tmp_path / "c.pt"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_what_torch_saves_is_admitted(tmp_path: Path, optimizer: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(2)).double()
    made = optimizer([*model[:3].parameters()], lr=torch.tensor(0.1) if optimizer is torch.optim.Adam else 0.1)
    model(torch.zeros(2, 1, 4, 4, dtype=torch.float64)).sum().backward()
    made.step()
    state = {"model": model[:3].state_dict(), "optimizer": made.state_dict(), "rng": [{"cpu": torch.get_rng_state()}],
             "more": [(), {}, (1,), (1, 2), (1, 2, 3, 4), 2**40, -1, 1e300, True, torch.Size([2]), nn.Parameter()],
             "half": torch.zeros(2, dtype=torch.bfloat16)}  # fmt: skip
    torch.save(state, tmp_path / "c.pt")
    assert refusal(tmp_path / "c.pt") is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({(1, 2): 3}, "a key of its pickle is no plain value"),
        (bytearray(10), "more than tensors and plain values"),
        ({1, 2}, "more than tensors and plain values"),
        (OrderedDict(a=1), None),
        (torch.float32, "more than tensors and plain values"),
    ],
    ids=["tuple as key", "bytearray", "set", "OrderedDict", "dtype"],
)
def test_only_what_a_checkpoint_holds_is_followed(tmp_path: Path, value: Any, reason: str | None) -> None:
    torch.save({"x": value}, tmp_path / "c.pt")
    found = refusal(tmp_path / "c.pt")
    assert found is None if reason is None else reason in (found or "")


def test_shared_lists_are_counted_before_they_are_made(tmp_path: Path) -> None:
    laughs: Any = ["ha", "ha"]
    for _ in range(30):
        laughs = [laughs, laughs]
    torch.save({"x": laughs}, tmp_path / "c.pt")
    assert "written out it has more than" in (refusal(tmp_path / "c.pt") or "")


def test_lists_that_are_filled_after_they_were_shared_are_counted_too() -> None:
    """Top down, as no pickler writes: each list is held twice while it is still empty."""

    def fetched(level: int) -> bytes:
        return b"h" + bytes([level])

    # Forty lists that are made empty; then the first gets the second twice, and so on. One list holds them all.
    made = b"".join(b"]q" + bytes([level]) for level in range(40))
    filled = b"".join(fetched(n) + b"(" + fetched(n + 1) * 2 + b"e" for n in range(39))
    content = b"\x80\x02](" + made + filled + b"e."
    assert "written out it has more than" in (pickle_excess(content) or "")


@pytest.mark.parametrize("some", [b"}", b"]", b")", b"N", b"]]a", b"}q\x01", b"ccollections\nOrderedDict\n)R"])
def test_a_million_opcodes_are_refused(saved: Path, some: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PICKLE_OPCODES", 1000)

    def longer(content: dict[str, bytes]) -> dict[str, bytes]:
        return {name: data[:2] + some * 3000 + data[2:] if name.endswith("/data.pkl") else data
                for name, data in content.items()}  # fmt: skip

    assert refusal(saved) is None
    rewritten(saved, longer)
    assert "opcodes" in (refusal(saved) or "")


@pytest.mark.parametrize(
    "content", [b"", b".", b"\x80\x02h\x05.", b"\x80\x02e.", b"\x80\x02N", b"\x80\x02}NN", b"\xff"]
)
def test_a_damaged_pickle_is_called_that(content: bytes) -> None:
    assert "its pickle is damaged" in (pickle_excess(content) or "")


def test_code_is_never_followed() -> None:
    assert "never loaded" in (pickle_excess(pickle.dumps(print, protocol=2)) or "")


@pytest.mark.parametrize("harm", ["compressed", "no pickle", "two pickles", "two folders", "no archive", "cut"])
def test_what_is_no_archive_of_torchs_is_refused(saved: Path, harm: str) -> None:
    changes: dict[str, Any] = {
        "no pickle": lambda c: {name: data for name, data in c.items() if not name.endswith("data.pkl")},
        "two pickles": lambda c: c | {"archive/x/data.pkl": b"N."},
        "two folders": lambda c: c | {"other/x": b""},
    }
    if harm in changes:
        rewritten(saved, changes[harm])
    elif harm == "compressed":
        rewritten(saved, lambda c: c, zipfile.ZIP_DEFLATED)
    else:
        saved.write_bytes(b"hello" if harm == "no archive" else saved.read_bytes()[:-30])
    assert (
        refusal(saved) == "it is compressed" if harm == "compressed" else "no archive as torch" in str(refusal(saved))
    )


def test_entries_that_name_the_same_bytes_are_refused(saved: Path) -> None:
    """In the directory each entry says where its bytes begin: all are led to those of the tensor."""
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        size = struct.pack("<2L", largest.file_size, largest.file_size)
        content[at + 20 : at + 28] = size
        at = content.find(b"PK\x01\x02", at + 4)
    saved.write_bytes(content)
    assert refusal(saved) == "its archive names the same bytes twice"


def test_a_directory_of_too_many_entries_is_refused_unread(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ARCHIVE_DIRECTORY_BYTES", 100)
    assert refusal(saved) == "its archive has too many entries"
