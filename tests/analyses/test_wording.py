from __future__ import annotations

import pytest

from tvlars_probe.analyses.wording import batches, counted_or_no, percent, some_of


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        (["n" * 40, "m" * 40, "c"], f"{'n' * 40} and 2 more"),
        (["n" * 90, "m"], f"{'n' * 90} and 1 more"),
        (["n" * 90], "n" * 90),
    ],
    ids=["one", "two", "three", "four", "long", "too long", "one too long"],
)
def test_names_are_listed_as_far_as_there_is_room_and_the_others_counted(names: list[str], text: str) -> None:
    assert some_of(names, most=3) == text


def test_of_very_many_names_the_number_is_readable() -> None:
    assert some_of([str(i) for i in range(12_345)], most=2) == "0, 1 and 12,343 more"


def test_counts_and_batch_sizes_agree_with_their_nouns() -> None:
    assert [counted_or_no(count, "batch size") for count in (0, 1, 2000)] == [
        "no batch size",
        "1 batch size",
        "2,000 batch sizes",
    ]
    assert (batches([64]), batches([64, 1024])) == ("batch 64", "batches 64 and 1,024")
    assert [percent(level) for level in (0.95, 0.999, 0.57)] == ["95 %", "99.9 %", "57 %"]
