"""The directions of imports, and what may be imported without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tvlars_probe"

# Who may import whom; errors, reductions, collectives and wrappers are open to all.
ALLOWED = {
    "errors": set(),
    "collectives": set(),
    "reductions": set(),
    "wrappers": set(),
    "traces": set(),
    "optimizers": set(),
    "models": set(),
    "data": set(),
    "curvature": set(),
    "probes": {"curvature", "traces"},
    "runners": {"models", "data", "optimizers", "probes", "curvature", "traces"},
    "analyses": {"traces", "optimizers"},
    "charts": {"analyses"},
    "report": {"charts", "analyses"},
    "commands": {
        "analyses",
        "charts",
        "report",
        "runners",
        "models",
        "data",
        "optimizers",
        "curvature",
        "traces",
    },
    "cli": {"commands"},
    "__main__": {"cli"},
    "__init__": {"curvature", "optimizers", "probes", "traces"},
}
OPEN = {"errors", "reductions", "collectives", "wrappers", "__init__"}
TORCH_FREE = ("traces", "errors", "cli", "commands", "optimizers.schedules", "optimizers.phi", "optimizers.registry",
              "models.backbones", "data.registry", "data.batches", "runners.config", "curvature.results",
              "runners.modes", "runners.grids", "runners.sweeps", "models.initialization")  # fmt: skip


def imports(path: Path) -> set[str]:
    """Rooms of the package that a module imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {
            name.split(".")[1] if "." in name else "__init__" for name in names if name.startswith("tvlars_probe")
        }
    return rooms


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    assert imports(path) - OPEN - {room(path)} <= ALLOWED[room(path)]


def test_traces_and_commands_are_importable_without_torch() -> None:
    modules = [f"tvlars_probe.{name}" for name in TORCH_FREE]
    modules += [
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts)
        for name in ("traces", "commands", "analyses", "charts", "report")
        for p in sorted((PACKAGE / name).glob("*.py"))
    ]
    code = f"import sys, importlib\n[importlib.import_module(m) for m in {modules!r}]\nprint('torch' in sys.modules)"
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
