from __future__ import annotations

import pytest

from tvlars_probe.admission.names import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ‖w‖ and 日本語\n\tas well", "plain, ‖w‖ and 日本語\n\tas well"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("line\rover", "line\\x0dover"),
        ("\u202egnp.exe\x9b2J", "\\u202egnp.exe\\x9b2J"),
    ],
)
def test_control_characters_are_spelt_out(text: str, shown: str) -> None:
    assert printable(text) == shown
