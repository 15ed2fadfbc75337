"""Which nodes of a shard move when it is to be in other zones."""

import pytest
from support.rows import node

from cacheyard.domain.placement import moves


@pytest.mark.parametrize(
    ("now", "wanted", "then"),
    [
        ("ab", "ab", "ab"),
        ("ab", "ba", "ab"),  # who is there already stays, in whatever order they are asked for
        ("ab", "c", "cc"),
        ("ab", "a", "aa"),
        ("ab", "ac", "ac"),
        ("ab", "bc", "cb"),  # the master moves if its zone is not wanted
        ("aa", "ab", "ab"),  # no zone has more than its share, and the master stays
        ("ab", "abc", "ab"),
        ("abc", "ab", "aba"),
        ("aaa", "abc", "abc"),
        ("aaaa", "ab", "aabb"),
        ("abcabc", "cd", "ddccdc"),
    ],
)
def test_as_few_nodes_move_as_need_be(now: str, wanted: str, then: str) -> None:
    shard = [node(number, az_code=zone) for number, zone in enumerate(now)]
    zones = {node.id: node.az_code for node in shard}
    zones.update({move.node.id: move.zone for move in moves(shard, wanted)})
    assert "".join(zones.values()) == then
