"""JSON and TOML that nest or repeat beyond measure are refused before they are parsed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tvlars_probe.admission import limits
from tvlars_probe.admission.texts import parse_json, parse_toml
from tvlars_probe.errors import RefusedFileError

PATH = Path("f")


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "value",
    [
        None, 1.5, "é\N{PILE OF POO}", [], {"a": [1, {"b": "]]]"}]}, "[" * 100, {'"': "\\"}, ["\\", "[[\"[", "\\\\\"["],
        "\ud800",
    ],
)  # fmt: skip
def test_json_is_what_json_says_it_is(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text, PATH) == parse_json(text.encode(), PATH) == value


@pytest.mark.parametrize(
    "text",
    [
        nested(100_000), "[" * 100_000, '{"a":' * 100_000, '["]]]",' * 100_000, '["\\"]",' * 100_000, '["\\\\",' * 1000,
        nested(limits.TEXT_DEPTH + 1),
    ],
    ids=["closed", "open", "objects", "brackets in texts", "escaped quotes", "escaped backslashes", "one too deep"],
)  # fmt: skip
def test_json_that_nests_too_deep_is_refused(text: str) -> None:
    for given in (text, text.encode()):
        with pytest.raises(RefusedFileError, match=r"f is refused: it nests [\d,]+ deep, of 64 that it can"):
            parse_json(given, PATH)


def test_depth_is_that_of_the_deepest_value() -> None:
    assert parse_json(nested(limits.TEXT_DEPTH), PATH)
    assert len(parse_json("[" + ",".join([nested(60)] * 500) + "]", PATH)) == 500


def test_json_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEXT_ELEMENTS", 4)
    assert parse_json("[1,2,3]", PATH) == [1, 2, 3]
    with pytest.raises(RefusedFileError, match="it has 6 values, of 4"):
        parse_json("[[],[],{}]", PATH)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_other_encodings_in_which_brackets_could_hide_are_no_json(encoding: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(nested(3).encode(encoding), PATH)
    assert not isinstance(caught.value, RecursionError)


@pytest.mark.parametrize(
    "text",
    [
        'a = "[[[["', "a = '''\n[[[\n'''", 'a = """\\"""[[[["""', "a = 1 # [[[[", "[a.b]\nc = [[1], [2]]\nd = {e = 1}",
        '"a.b.c" = 1.5', f"a = [{', '.join(['0.5'] * 200)}]",
    ],
)  # fmt: skip
def test_toml_is_what_toml_says_it_is(text: str) -> None:
    import tomllib

    assert parse_toml(text.encode(), PATH) == tomllib.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        f"a = {nested(30_000)}", "a = " + "{a = " * 5_000, ".".join(["a"] * 30_000) + " = 1",
        ".".join(['"a"'] * 15_000) + " = 1", f"[{'.'.join('a' * 30_000)}]", 'a = ["]",' * 6_000, "a = [']'," * 6_000,
        'a = ["""]""",' * 5_000, "a = [ # ]\n" + "[ # ]\n" * 5_000,
    ],
    ids=["arrays", "tables", "dotted key", "quoted key", "header", "brackets in texts", "in literals", "in long texts",
         "in comments"],
)  # fmt: skip
def test_toml_that_nests_too_deep_is_refused(text: str) -> None:
    with pytest.raises(RefusedFileError, match=r"it nests [\d,]+ deep, of 64 that it can"):
        parse_toml(text.encode(), PATH)


@pytest.mark.parametrize("end", ['"""', '""""', '"""""', "'''", "''''", "'''''"])
def test_quotes_before_those_that_end_a_long_text_hide_nothing(end: str) -> None:
    quotes = end[:3]
    assert parse_toml(f"a = [{quotes}x{end}, []]".encode(), PATH) == {"a": ["x" + end[3:], []]}
    with pytest.raises(RefusedFileError, match="nests"):
        parse_toml(f"a = [{quotes}x{end}, {'[' * 5_000}".encode(), PATH)


def test_long_texts_without_an_end_take_no_longer_than_they_are_long() -> None:
    """Each line begins one, and its quotes are escaped in those that began before it."""
    start = time.process_time()
    with pytest.raises(ValueError, match="Unterminated"):
        parse_toml(b'x = """\n' + b'\\"""\n' * 13_000, PATH)
    assert time.process_time() - start < 2
