"""What a server of a Redis Cluster wrote down, when it was killed in the middle of that."""

import pytest

from cacheyard.domain import slots
from cacheyard.engine.cluster import legible, parse_members

ME, OTHER, REPLICA = "a" * 40, "b" * 40, "c" * 40


def written(mine: str, theirs: str, moving: int = 0, epoch: int = 31) -> str:
    """nodes.conf of one of two masters; so many slots go to the other."""
    opened = "".join(f" [{slot}->-{OTHER}]" for slot in range(moving))
    return (
        f"{REPLICA} 127.0.0.4:6379@16379 slave {OTHER} 0 1795387283000 {epoch} connected\n"
        f"{ME} 127.0.0.2:6379@16379 myself,master - 0 1795387282000 {epoch} connected {mine}{opened}\n"
        f"{OTHER} 127.0.0.3:6379@16379,other.local master,fail? - 0 179538728 9 disconnected {theirs}\n"
        f"vars currentEpoch {epoch} lastVoteEpoch 0\n"
    )


LONG, SHORT = written("0-8000", "8001-16383", 200), written("100-8000", "0-99 8001-16383", 3)
BORN = (
    f"{OTHER} :0@0 master,noaddr - 0 0 0 disconnected 0-16383\n"
    f"{ME} 127.0.0.2:6379@16379 myself,slave {OTHER} 0 0 0 connected\n"
    "vars currentEpoch 10 lastVoteEpoch 0\n"
)


@pytest.mark.parametrize("whole", [LONG, SHORT, BORN])
def test_a_whole_one_is_as_it_is(whole: str) -> None:
    assert legible(whole) == whole


@pytest.mark.parametrize("what", ["", "\n\n", LONG[:4096], LONG[200:], LONG.replace(" myself,", " ")])
def test_a_part_of_one_says_nothing(what: str) -> None:
    assert legible(what) is None


@pytest.mark.parametrize(
    ("old", "new"), [(LONG, SHORT), (SHORT, LONG), (LONG, written("0-8000", "8001-16383", 198, epoch=131))]
)
def test_a_new_one_over_an_old_one_is_the_new_one_if_that_is_whole(old: str, new: str) -> None:
    padded = new.ljust(len(old), "\n")
    for cut in range(1, len(padded) + 1):  # it is at the end of a page, wherever that is
        said = legible(padded[:cut] + old[cut:])
        if cut >= len(new):
            assert said == new
        elif said is not None:
            seen = parse_members(said.rpartition("vars")[0])
            assert [member.engine_id for member in seen] == [REPLICA, ME, OTHER]
            held = [slot for member in seen for slot in slots.of(member.slots)]
            assert len(set(held)) == len(held) > 0
