"""Who gets which slots: as few move as can, and the others stay where they are."""

import random

import pytest

from cacheyard.domain import slots
from cacheyard.domain.slots import SLOTS


def owned(*shares: int) -> dict[str, list[int]]:
    """Slots for shards a, b, c …, so many for each, scattered."""
    rest = list(range(SLOTS))
    random.Random(7).shuffle(rest)
    assert sum(shares) == SLOTS
    found = {}
    for name, share in zip("abcdefghijklmnop", shares, strict=False):
        found[name], rest = rest[:share], rest[share:]
    return found


def after(has: dict[str, list[int]], moves: list[slots.Move]) -> dict[str, list[int]]:
    """Who has what when all moves are made; each takes a slot from who has it."""
    now = {name: set(some) for name, some in has.items()}
    for slot, source, target in moves:
        now[source].remove(slot)
        now.setdefault(target, set()).add(slot)
    return {name: sorted(some) for name, some in now.items()}


@pytest.mark.parametrize(
    ("shares", "keep"),
    [
        ((5461, 5462, 5461), "abc"),
        ((5461, 5462, 5461), "abcd"),
        ((5461, 5462, 5461), "abcdefgh"),
        ((4096, 4096, 4096, 4096), "abd"),
        ((2048,) * 8, "abc"),
        ((16384,), "abcdefghijklmnop"),
        ((1, 16383), "ab"),
        ((0, 16384, 0), "ac"),
        ((5000, 5000, 6384), "abcde"),
    ],
)
def test_shares_are_equal_and_no_slot_moves_without_need(shares: tuple[int, ...], keep: str) -> None:
    has = owned(*shares)
    moves = slots.moves(has, list(keep))
    then = after(has, moves)
    assert sorted(slot for some in then.values() for slot in some) == list(range(SLOTS))
    sizes = [len(then.get(name, ())) for name in keep]
    assert max(sizes) - min(sizes) <= 1
    assert all(not some for name, some in then.items() if name not in keep)
    # what any way must move: all of those who go, and what the others have too much
    least, more = divmod(SLOTS, len(keep))
    largest = sorted((len(has.get(name, ())) for name in keep), reverse=True)
    too_much = sum(max(0, size - least - (rank < more)) for rank, size in enumerate(largest))
    leaving = sum(len(some) for name, some in has.items() if name not in keep)
    assert len(moves) == leaving + too_much


def test_a_plan_half_done_is_gone_on_with() -> None:
    has = owned(5461, 5462, 5461)
    whole = slots.moves(has, list("abcd"))
    half = after(has, whole[: len(whole) // 2])
    rest = slots.moves(half, list("abcd"))
    assert len(rest) == len(whole) - len(whole) // 2
    assert slots.moves(after(half, rest), list("abcd")) == []


def test_back_and_forth_each_has_its_old_slots_again_but_for_one() -> None:
    has = {name: slots.of([part]) for name, part in zip("abc", slots.balanced(3), strict=True)}
    grown = after(has, slots.moves(has, list("abcd")))
    shrunk = after(grown, slots.moves(grown, list("abc")))
    assert all(len(set(has[name]) - set(shrunk[name])) <= 1 for name in "abc")
