"""The layers that are sent each for itself change little."""

from __future__ import annotations

from tvlars_probe.exports.members import MOST_EVER, Members

MANY = [f"layer{k}" for k in range(1000)]


def test_few_layers_are_all_followed() -> None:
    members = Members(3)
    members.renew(["a", "b"], {})
    assert members.names == ["a", "b"]


def test_the_first_ones_stay_where_others_are_little_further_out() -> None:
    members = Members(2)
    members.renew(MANY, {"layer1": 1.1, "layer2": 1.2, "layer3": 1.05})
    members.renew(MANY, {"layer4": 1.9})
    assert {*members.names} == {"layer1", "layer2"}


def test_a_far_one_takes_the_place_of_the_one_that_was_far_longest_ago() -> None:
    members = Members(2)
    members.renew(MANY, {"layer1": 1.1, "layer2": 1.2})
    members.renew(MANY, {"layer1": 1.1})
    members.renew(MANY, {"layer7": 5.0})
    assert {*members.names} == {"layer1", "layer7"}


def test_the_number_of_layers_ever_followed_is_bounded_and_old_ones_may_come_back() -> None:
    members, seen = Members(2), set()
    for name in MANY:
        members.renew(MANY, {name: 9.0})
        seen |= {*members.names}
    assert len(seen) == MOST_EVER
    members.renew(MANY, {"layer0": 9.0})
    assert "layer0" in members.names


def test_layers_that_are_gone_give_way() -> None:
    members = Members(2)
    members.renew(MANY, {"layer1": 9.0, "layer2": 9.0})
    members.renew(MANY[3:], {"layer3": 1.1})
    assert {*members.names} == {"layer2", "layer3"}
    members.renew(["head"], {})
    assert [*members.names] == ["head"]
