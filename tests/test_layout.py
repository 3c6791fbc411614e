"""The layout: directions of imports, sizes, and what may be imported without torch. docs/architecture.md tells it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.import_graph import cycle, import_graph
from tvlars_probe.exports.budget import TRACKERS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tvlars_probe"
GRAPH = import_graph(PACKAGE)

# Who may import whom; what stands in OPEN is open to all.
ALLOWED = {
    "errors": set(),
    "extras": set(),
    "collectives": set(),
    "reductions": set(),
    "spectral_norms": set(),
    "uncompiled": set(),
    "whole_tensors": set(),
    "shards": set(),
    "wrappers": set(),
    "admission": set(),
    "displays": set(),
    "traces": set(),
    "optimizers": set(),
    "models": set(),
    "data": set(),
    "curvature": set(),
    "findings": {"optimizers"},
    "live": {"findings", "traces"},
    "exports": {"findings", "live", "traces"},
    "noise": {"curvature"},
    "diagnosis": {"analyses", "findings", "optimizers", "traces"},
    "probes": {"curvature", "exports", "findings", "noise", "optimizers", "traces"},
    "integrations": {"probes"},
    "runners": {"curvature", "data", "findings", "models", "noise", "optimizers", "probes", "traces"},
    "analyses": {"optimizers", "traces"},
    "charts": {"analyses", "optimizers"},
    "report": {"analyses", "charts", "traces"},
    "questions": {"analyses", "charts", "report", "traces"},
    "runs": {"analyses", "questions", "traces"},
    "queries": {"optimizers", "runs", "traces"},
    "board": {"analyses", "charts", "live", "report", "runs", "traces"},
    "commands": {
        "analyses", "board", "charts", "curvature", "data", "diagnosis", "exports", "findings", "live", "models",
        "noise", "optimizers", "queries", "report", "runners", "runs", "traces",
    },
    "cli": {"commands", "traces"},
    "__main__": {"cli"},
    "__init__": {"curvature", "diagnosis", "exports", "findings", "noise", "optimizers", "probes", "queries", "runs"},
}  # fmt: skip
OPEN = {
    "admission",
    "displays",
    "errors",
    "extras",
    "reductions",
    "spectral_norms",
    "collectives",
    "uncompiled",
    "whole_tensors",
    "shards",
    "wrappers",
    "__init__",
}

WITHOUT_TORCH = (
    "admission", "displays", "traces", "errors", "extras", "cli", "commands", "analyses", "charts", "report",
    "questions", "runs", "findings", "live", "exports", "board", "queries",
)  # fmt: skip
"""Rooms of which no module needs torch; what they import of other rooms doesn't need it either."""

MOST_LINES, MOST_LINES_OF_TESTS, MOST_LINES_OF_A_BODY = 350, 500, 60

PYTHON = [
    path for folder in ("tvlars_probe", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_run_one_way(module: str) -> None:
    assert {room(imported) for imported in GRAPH[module]} - OPEN - {room(module)} <= ALLOWED[room(module)]


def test_no_two_files_import_one_another() -> None:
    """Not even through others, inside a function, or for typing alone."""
    assert cycle(GRAPH) is None


@pytest.mark.parametrize(
    "back",
    [
        "from planted.a import A",
        "import planted.a",
        "from planted import a",
        "if TYPE_CHECKING:\n    from planted.a import A",
        "def f():\n    from planted.a import A",
    ],
    ids=["of a name", "of a module", "from the package", "for typing", "in a function"],
)
def test_a_planted_circle_is_found(back: str, tmp_path: Path) -> None:
    package = tmp_path / "planted"
    package.mkdir()
    for name, text in {"__init__": "", "a": "from planted.b import B", "b": "import planted.c", "c": back}.items():
        (package / f"{name}.py").write_text(text, encoding="utf-8")
    found = cycle(import_graph(package))
    assert found is not None
    assert {*found} == {"planted.a", "planted.b", "planted.c"}
    (package / "c.py").write_text("", encoding="utf-8")
    assert cycle(import_graph(package)) is None


def test_a_planted_import_in_the_wrong_direction_is_found(tmp_path: Path) -> None:
    """Traces must not know of charts."""
    package = tmp_path / "tvlars_probe"
    for name in ("traces", "charts"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("", encoding="utf-8")
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "traces" / "reader.py").write_text("from tvlars_probe import charts", encoding="utf-8")
    assert {room(imported) for imported in import_graph(package)["tvlars_probe.traces.reader"]} == {"charts"}
    assert "charts" not in ALLOWED["traces"]


def bodies(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's name, and the lines from its first statement after the docstring to its end.

    A click command's options are decorators, and no part of its body.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_and_no_function_is_too_long_to_be_read(path: Path) -> None:
    most = MOST_LINES_OF_TESTS if path.is_relative_to(ROOT / "tests") else MOST_LINES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most
    assert {name: lines for name, lines in bodies(path) if lines > MOST_LINES_OF_A_BODY} == {}


def test_no_two_classes_have_one_name() -> None:
    """A private one counts with its underscore off: a reader who searches for the name finds one thing."""
    homes: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.strip("_"), []).append(path.relative_to(PACKAGE).as_posix())
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def asks_what_an_optimizer_is(path: Path) -> Iterator[str]:
    """Comparisons with an optimizer's class or its name, and tests of what its parameter groups or state hold."""
    from tvlars_probe.optimizers.registry import OPTIMIZERS

    names = {entry.class_name for entry in OPTIMIZERS.values()} | {*OPTIMIZERS} | {"Muon", "Lars", "Lamb", "NAdam"}
    keys = {"betas", "momentum", "nesterov", "trust_coefficient", "momentum_buffer", "exp_avg", "exp_avg_sq"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            words = {constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant)}
            if words & (names | keys):
                yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            kinds = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
            if kinds & names:
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if not path.is_relative_to(PACKAGE / "optimizers")],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_only_the_optimizers_know_what_an_optimizer_is(path: Path) -> None:
    """By class or by settings: everybody else asks `describe`."""
    assert [*asks_what_an_optimizer_is(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "if 'betas' in group: pass",
        "x = name == 'TVLARS'",
        "isinstance(optimizer, (LARS, LAMB))",
        "kind.__name__ in ('Muon',)",
    ],
)
def test_a_planted_question_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(text, encoding="utf-8")
    assert [*asks_what_an_optimizer_is(tmp_path / "planted.py")]


def test_traces_and_commands_are_importable_without_torch() -> None:
    modules = [module for module in GRAPH if room(module) in WITHOUT_TORCH]
    # A tracker's own module needs its package, which need not be there.
    trackers = [module for module in modules if module.rpartition(".")[2] in TRACKERS]
    code = (
        f"import sys, importlib, importlib.util\nfor m in {modules!r}:\n"
        f"    if m not in {trackers!r} or importlib.util.find_spec(m.rpartition('.')[2]):\n"
        f"        importlib.import_module(m)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"], ["runs", "--help"], ["show", "-h"],
                                  ["sweep", "-h"], ["data", "-h"], ["data", "list", "-h"]])  # fmt: skip
def test_help_answers_without_loading_anything_heavy(args: list[str]) -> None:
    code = (
        "import sys\nfrom tvlars_probe.cli import main\n"
        f"try:\n    main({args!r})\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = [m for m in ('torch', 'pandas', 'pyarrow', 'numpy', 'rich', 'altair') if m in sys.modules]\n"
        "print('HEAVY', heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "HEAVY []"
    assert done.stdout
