"""The notebooks of docs/ run from top to bottom, and their cells show what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext
import nbclient
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.py"))


def shown(cell: Any) -> dict[str, str]:
    """By media type, what a cell shows; its prints and warnings under their stream's name."""
    told: dict[str, str] = {}
    for output in cell.outputs:
        told |= output.get("data") or {output["name"]: output["text"]}
    return told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = jupytext.read(path)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = {cell.source: shown(cell) for cell in notebook.cells if cell.cell_type == "code"}
    assert {source: told["stderr"] for source, told in cells.items() if "stderr" in told} == {}
    by_last_line = {source.splitlines()[-1]: told for source, told in cells.items()}
    for line in ("runs", "run", "warmup", 'run.replay(optimizer="tvlars", lmbda=0.05)', 'train("lars", lr=4.0)'):
        assert by_last_line[line]["text/html"].startswith('<div class="tvlars-probe">'), line
        assert len(by_last_line[line]["text/plain"].splitlines()) == 1
    assert "vegaEmbed" in by_last_line['run.chart("trust-ratio")']["text/html"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
