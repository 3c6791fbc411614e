"""What stands in a Vega-Lite specification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def encodings(spec: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every channel that shows a field, anywhere in a specification."""
    if isinstance(spec, dict):
        for channel, definition in spec.get("encoding", {}).items():
            if isinstance(definition, dict) and "field" in definition:
                yield channel, definition
        for part in spec.values():
            yield from encodings(part)
    elif isinstance(spec, list):
        for part in spec:
            yield from encodings(part)


def data_sets(spec: Any) -> Iterator[list[Any]]:
    """The rows of every data set in a specification."""
    if isinstance(spec, dict):
        data = spec.get("data")
        if isinstance(data, dict) and "values" in data:
            yield data["values"]
        yield from spec.get("datasets", {}).values()
        for name, part in spec.items():
            if name not in ("data", "datasets"):
                yield from data_sets(part)
    elif isinstance(spec, list):
        for part in spec:
            yield from data_sets(part)
