"""Hash slots of a Redis Cluster: who should have which."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

SLOTS = 16384
Range = tuple[int, int]  # first and last slot, both in it
Move = tuple[int, str, str]  # a slot, the shard that has it, the shard that is to have it


def balanced(shards: int) -> list[Range]:
    """The slots of each of so many new shards: all of them, as equal as can be."""
    edges = [round(SLOTS * shard / shards) for shard in range(shards + 1)]
    return [(first, end - 1) for first, end in pairwise(edges)]


def moves(owned: Mapping[str, Sequence[int]], keep: Sequence[str]) -> list[Move]:
    """As few moves as give all slots to the shards in `keep`, as equal as can be. `owned`: who has which now,
    each slot once; shards that are not in `keep` lose theirs."""
    least, more = divmod(SLOTS, len(keep))
    largest = sorted(keep, key=lambda shard: -len(owned.get(shard, ())))
    due = {shard: least + (rank < more) for rank, shard in enumerate(largest)}
    spare = [(slot, shard) for shard, slots in owned.items() for slot in sorted(slots)[due.get(shard, 0) :]]
    lacking = [shard for shard in keep for _ in range(due[shard] - len(owned.get(shard, ())))]
    return [(slot, shard, target) for (slot, shard), target in zip(spare, lacking, strict=True)]


def count(ranges: Iterable[Range]) -> int:
    """How many slots there are in these ranges."""
    return sum(last - first + 1 for first, last in ranges)


def of(ranges: Iterable[Range]) -> list[int]:
    """The slots in these ranges, in their order."""
    return [slot for first, last in ranges for slot in range(first, last + 1)]


def ranges(slots: Sequence[int]) -> list[Range]:
    """Slots in any order as ranges."""
    found: list[Range] = []
    for slot in sorted(slots):
        if found and found[-1][1] + 1 == slot:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found
