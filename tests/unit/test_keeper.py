"""What the keeper does while nodes come and go."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from support.rows import node

from cacheyard.agent.keeper import Keeper
from cacheyard.agent.watched import Watched
from cacheyard.domain.nodes import Node
from cacheyard.store.shards import Guarded

SHARD = Guarded(
    id="s",
    instance_id="i",
    cache_mode="cluster",
    internal_secret="",
    watched=True,
    watch=1,
    seen_watch=1,
    master_id="n0",
    master_ip="127.0.0.0",
    port=6379,
    ssl=False,
)


class Members:
    """Answers for the members of a cluster of two nodes, of which the second was promoted; meanwhile the
    supervisor finds another one."""

    def __init__(self, watched: dict[str, Watched], me: int) -> None:
        self._watched = watched
        self._me = me

    async def call(self, *words: object) -> str:
        self._watched[f"new{self._me}"] = Members.of(self._watched, 2, shard_id="another")
        await asyncio.sleep(0)
        assert words == ("CLUSTER", "NODES")
        return "".join(
            f"{number}{'0' * 39} 127.0.0.{number}:6379@16379 {'myself,' * (number == self._me)}master - 0 0 "
            f"{number} connected{' 0-16383' * number}\n"
            for number in range(2)
        )

    @staticmethod
    def of(watched: dict[str, Watched], number: int, **changes: Any) -> Watched:
        server = SimpleNamespace(link=Members(watched, number), alive=True)
        found: Node = node(number, **changes)
        return cast(Watched, SimpleNamespace(node=found, server=server, answering=True))


def test_who_asks_for_the_master_is_not_disturbed_by_nodes_that_come() -> None:
    watched: dict[str, Watched] = {}
    watched |= {f"n{number}": Members.of(watched, number) for number in range(2)}
    nothing = cast(Any, None)
    keeper = Keeper(nothing, watched, nothing, nothing, open_secret=str, binary=None)
    decided = asyncio.run(keeper._decided(SHARD))
    assert decided is not None
    assert decided.id == "n1"
    assert len(watched) == 4
