"""What commands write into docs/evidence/verdicts.md, each between marks that name it."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "verdicts.md"


def write(command: str, text: str) -> None:
    """Put what a command makes into the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_marks(command).sub(lambda m: f"{m[1]}{text}{m[2]}", page), encoding="utf-8")


def written(command: str) -> str:
    """What stands in the page of a command."""
    found = _marks(command).search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return found[0].removeprefix(found[1]).removesuffix(found[2])


def _marks(command: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- python -m {re.escape(command)} --write -->\n).*?(\n<!-- end -->)", re.DOTALL)
