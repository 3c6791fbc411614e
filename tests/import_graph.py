"""Which file of a package imports which: also inside functions, and for typing alone."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(package: Path) -> Graph:
    """The modules that each module imports, by their full names; a package's ``__init__`` is named by the package."""
    files = {_name(package, path): path for path in sorted(package.rglob("*.py"))}
    return {name: {*_imports(path, files)} - {name} for name, path in files.items()}


def cycle(graph: Graph) -> list[str] | None:
    """Modules that import one another, the first of them also at the end; None where there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return None


def _name(package: Path, path: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            # "from package import module" imports the module; any other name is of the package itself.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from inner & {*files}
            if inner - {*files}:
                yield node.module
