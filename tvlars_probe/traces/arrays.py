"""Arrow's columns as NumPy arrays, without pandas.

pyarrow's own ``to_numpy`` imports pandas where that is installed, which takes longer than all that `watch` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def numbers(column: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values of a column of numbers or of times, and which of them are there; those of nulls mean nothing.

    Args:
        column: an Arrow array, chunked or not.
    """
    array: Any = column.combine_chunks() if hasattr(column, "chunks") else column
    count, first = len(array), array.offset
    if not count:
        return np.empty(0, _type(array)), np.empty(0, np.bool_)
    validity, values = array.buffers()
    there = np.ones(count, np.bool_)
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
        there = bits[first : first + count].astype(np.bool_)
    return np.frombuffer(values, _type(array), first + count)[first:], there


def _type(array: Any) -> Any:
    # A time is an integer of microseconds.
    return np.dtype(f"{'f' if str(array.type) in ('float', 'double') else 'i'}{array.type.bit_width // 8}")


def with_nan(column: pa.ChunkedArray[Any]) -> NDArray[Any]:
    """The values of a column of floats, with NaN for nulls."""
    values, there = numbers(column)
    return values if there.all() else np.where(there, values, np.nan)


def rows_at(places: NDArray[np.int64], rows: pa.Table) -> pa.Table:
    """The rows at these places, in this order."""
    import pyarrow as pa

    given: Any = np.ascontiguousarray(places)
    return rows.take(pa.Int64Array.from_buffers(pa.int64(), len(places), [None, pa.py_buffer(given)]))
