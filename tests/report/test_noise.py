"""The page's sections on the gradient's noise and the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.noisy import with_noise
from tvlars_probe.analyses.source import Source
from tvlars_probe.report.content import gather
from tvlars_probe.runs import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_runs_with_noise_on_record_have_its_sections(trained: Callable[..., Path], tmp_path: Path) -> None:
    with_it = [with_noise(trained(name), tmp_path, noise=noise) for name, noise in (("sgd", 600.0), ("lars", 8.0))]
    report = gather([Source(open_run(run)) for run in (*with_it, trained("tvlars"))])
    sections = {section.anchor: section for section in report.sections}
    assert {"noise-1", "noise-2", "batch-size"} <= {*sections}
    assert "noise-3" not in sections
    assert [len(sections[name].specs) for name in ("noise-1", "noise-2", "batch-size")] == [2, 2, 1]
    answers = [sections[name].verdict.answer for name in ("noise-1", "noise-2")]  # type: ignore[union-attr]
    assert answers == ["below", "beyond"]
    assert any(note.startswith("LARS scales each tensor by a norm") for note in sections["noise-2"].notes)
    (table,) = sections["batch-size"].tables
    assert table.frame["answer"].tolist() == ["noise scale", "noise scale"]


def test_a_run_by_itself_has_its_noise_and_no_comparison(trained: Callable[..., Path], tmp_path: Path) -> None:
    report = gather([Source(open_run(with_noise(trained("sgd"), tmp_path)))])
    anchors = [section.anchor for section in report.sections]
    assert "noise-1" in anchors
    assert "batch-size" not in anchors
