"""A checkpoint's archive and the pickle in it, checked before torch loads them.

`torch.load(weights_only=True)` runs no code of a stranger's, but makes whatever the pickle asks for: some opcodes of a
byte make a dict, a tuple that holds the next one twice takes for ever to be a key, and many entries of an archive may
name the same bytes.
"""

from __future__ import annotations

import itertools
import os
import pickletools
import struct
import zipfile
from typing import IO, TYPE_CHECKING, Any

from tvlars_probe.admission import limits, values
from tvlars_probe.errors import RefusedFileError

if TYPE_CHECKING:
    from pathlib import Path

_MORE = "it holds more than tensors and plain values, which is never loaded"

_END = struct.Struct("<4s4H2LH")
"""The end of an archive's directory: signature, disks, numbers of entries, its size and place, length of a comment."""

_LONG_END = struct.Struct("<4sQ2H2L4Q")
"""The same for large archives, whose short one is full of 0xff."""

_LONGEST_COMMENT = 1 << 16


def refuse_costly_checkpoint(stream: IO[bytes], path: Path) -> None:
    """Refuse a file that isn't an archive as ``torch.save`` writes it, or costs more than its tensors' own bytes.

    Args:
        stream: the file, open for reading; it is left at its beginning.
        path: its name, for messages.

    Raises:
        RefusedFileError: it isn't, or it does.
    """
    size = os.fstat(stream.fileno()).st_size
    if _directory_bytes(stream, size) > limits.ARCHIVE_DIRECTORY_BYTES:
        raise RefusedFileError(path, "its archive has too many entries")
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise RefusedFileError(path, "it is compressed")
            # torch finds an entry by its name in its own way: with one of each name there is but one to find.
            if len(names) < len(entries) or len(pickles) != 1 or len({name.partition("/")[0] for name in names}) != 1:
                raise RefusedFileError(path, "it is no archive as torch writes it")
            if sum(entry.file_size for entry in entries) > size:
                raise RefusedFileError(path, "its archive names the same bytes twice")
            if pickles[0].file_size > limits.PICKLE_BYTES:
                raise RefusedFileError(path, f"its pickle has {pickles[0].file_size:,} bytes")
            content = archive.read(pickles[0])
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as error:
        if isinstance(error, RefusedFileError):  # a ValueError, too, which has said what is wrong
            raise
        raise RefusedFileError(path, f"it is no archive as torch writes it: {error}") from None
    finally:
        stream.seek(0)
    if wrong := pickle_excess(content, limits.PICKLE_OPCODES + limits.TENSOR_OPCODES * len(entries)):
        raise RefusedFileError(path, wrong)


def _directory_bytes(stream: IO[bytes], size: int) -> int:
    """Bytes of an archive's directory, as its end tells; 0 where there is no end."""
    start = max(size - _END.size - _LONGEST_COMMENT - _LONG_END.size - 20, 0)
    stream.seek(start)
    tail = stream.read(size - start)
    at, long_at = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    told = _END.unpack_from(tail, at)[5] if 0 <= at <= len(tail) - _END.size else 0
    if 0 <= long_at <= len(tail) - _LONG_END.size:
        told = max(told if told < (1 << 32) - 1 else 0, _LONG_END.unpack_from(tail, long_at)[8])
    return told


class _Class(str):
    """The name of a class or function that a pickle asks for."""

    __slots__ = ()


_DICT = _Class("collections OrderedDict")
_PLAIN = {_DICT, "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size"}
"""What a checkpoint's pickle asks for, besides storages such as ``torch FloatStorage``."""

_LEAVES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "BINUNICODE"}
_NEW = {"EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def pickle_excess(content: bytes, most: int = limits.PICKLE_OPCODES) -> str | None:
    """What a checkpoint's pickle costs too much of; None where it costs no more than it may.

    Its opcodes are followed without making anything but lists of what each object holds.

    Args:
        content: the pickle.
        most: the most opcodes that it may have.
    """
    try:
        root = _Machine().run(content, most)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        return str(error) if isinstance(error, RefusedPickleError) else f"its pickle is damaged ({error})"
    return values.excess(root)


class RefusedPickleError(ValueError):
    """A pickle asks for what no checkpoint holds."""


class _Machine:
    """Follows a pickle's opcodes. An object is the list of what it holds, a leaf is itself."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes, most: int) -> Any:
        """What the pickle makes.

        Raises:
            RefusedPickleError: it has too many opcodes, or one that no checkpoint has.
            ValueError: it is damaged; also IndexError, KeyError, TypeError and AttributeError.
        """
        for opcode, argument, _ in itertools.islice(pickletools.genops(content), most):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise RefusedPickleError(f"its pickle has more than {most:,} opcodes")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LEAVES:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            held = self._to_mark()
            self._stack.append(held)
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [stack[-_TUPLES[name] :]]
        elif name in _NEW:
            stack.append([])
        elif name in ("APPEND", "APPENDS"):
            held = self._to_mark() if name == "APPENDS" else [stack.pop()]
            self._stack[-1].extend(held)
        elif name in ("SETITEM", "SETITEMS"):
            held = self._to_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            # A tuple's hash is that of all that it holds.
            if any(isinstance(key, list) for key in held[::2]):
                raise RefusedPickleError("a key of its pickle is no plain value")
            self._stack[-1].extend(held)
        else:
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "PROTO":
            return
        if name == "GLOBAL":
            if argument not in _PLAIN and not (argument.startswith("torch ") and argument.endswith("Storage")):
                raise RefusedPickleError(_MORE)
            stack.append(_Class(argument))
        elif name == "BINPERSID":  # a tensor's numbers, which stand in the archive
            stack[-1] = None
        elif name == "REDUCE" and isinstance(stack[-2], _Class):
            held, made = stack.pop(), stack.pop()
            if made == _DICT and held:
                raise RefusedPickleError(_MORE)
            stack.append([*held])
        elif name == "BUILD":  # attributes of an OrderedDict: a model's state has some
            held = stack.pop()
            stack[-1].append(held)
        else:
            raise RefusedPickleError(_MORE)

    def _to_mark(self) -> list[Any]:
        held, self._stack = self._stack, self._marked.pop()
        return held
