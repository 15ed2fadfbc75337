"""How much an instance's clients may send and get: what its flavor has, and what was changed of it.

Mbit/s in each direction. Flavors give it to shards; clients may choose more for a shard (for good), double
all (for a week), and leave it to a policy to choose. What is in force is computed from these, so a new
flavor or another number of shards needs nothing to be adjusted.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cacheyard.domain.flavors import Flavor

SHARD_MOST = 2048  # what a shard can be given, unless twice its flavor's share is more
PROXY_MOST = 10_000  # what all clients of a Proxy Cluster can have
RAISES = 3  # temporary increases that an instance can have
DAY = 86_400_000  # ms
MINUTE = 60_000  # ms


class Chosen(msgspec.Struct, frozen=True):
    """What a shard was given for good, and when."""

    mbit: int
    at: int


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """The last temporary increase."""

    count: int  # how many there were, with this one
    begin_at: int
    end_at: int
    over: bool = False  # the bandwidth is as before; later than `end_at` if something was in the way


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """When shards are given more by themselves."""

    window_minutes: int
    upper_percent: int
    grow_pause: int  # seconds between two increases of one shard
    # Kept and shown; nothing ever shrinks by itself.
    scale_in_enabled: bool = False
    lower_percent: int | None = None
    shrink_pause: int = 300
    since: int  # traffic from before does not count


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """`instances.bandwidth`."""

    shards: dict[str, Chosen] = {}  # by shard id; the others have their share of the flavor
    raised: Raised | None = None
    policy: Policy | None = None

    @property
    def is_raised(self) -> bool:
        """Whether a temporary increase is in force."""
        return self.raised is not None and not self.raised.over


UNCHANGED = Bandwidth()


def assured(flavor: Flavor) -> int:
    """A shard's share of the flavor."""
    return flavor.bandwidth // flavor.shards


def most(flavor: Flavor) -> int:
    """What a shard can have at most."""
    return max(SHARD_MOST, 2 * assured(flavor))


def ceiling(flavor: Flavor) -> int:
    """What all shards together can have at most."""
    together = most(flavor) * flavor.shards
    return min(PROXY_MOST, together) if flavor.cache_mode == "proxy" else together


def given(bandwidth: Bandwidth, flavor: Flavor, shard_id: str) -> int:
    """What a shard has for good: what was chosen, as far as the flavor has it."""
    chosen = bandwidth.shards.get(shard_id)
    least = assured(flavor)
    return least if chosen is None else min(max(chosen.mbit, least), most(flavor))


def of_shard(bandwidth: Bandwidth, flavor: Flavor, shard_id: str) -> int:
    """What a shard has now."""
    usual = given(bandwidth, flavor, shard_id)
    return min(2 * usual, most(flavor)) if bandwidth.is_raised else usual


def of_instance(bandwidth: Bandwidth, flavor: Flavor, shard_ids: Iterable[str]) -> int:
    """What all shards have now. (A flavor's figure need not be a multiple of its shards.)"""
    usual = flavor.bandwidth + sum(given(bandwidth, flavor, one) - assured(flavor) for one in shard_ids)
    if not bandwidth.is_raised:
        return min(usual, ceiling(flavor))
    if flavor.cache_mode == "proxy":
        return min(2 * usual, ceiling(flavor))
    return sum(of_shard(bandwidth, flavor, one) for one in shard_ids)


def raise_fault(
    bandwidth: Bandwidth, flavor: Flavor, shard_ids: Sequence[str], *, now: int, pause: int
) -> str | None:
    """Why the bandwidth cannot be doubled for a time now; None: it can. `pause`: ms between two increases."""
    last = bandwidth.raised
    if last is not None and not last.over:
        return "it is increased already"
    if last is not None and last.count >= RAISES:
        return f"it was increased {RAISES} times, which is all that an instance can have"
    if last is not None and now < last.end_at + pause:
        return "the last increase ended too short a time ago"
    higher = raised(bandwidth, now=now, lasts=1)
    if of_instance(higher, flavor, shard_ids) <= of_instance(bandwidth, flavor, shard_ids):
        return "it is the highest that there is"
    return None


def raised(bandwidth: Bandwidth, *, now: int, lasts: int) -> Bandwidth:
    """With one more temporary increase, which begins now. `lasts`: ms."""
    count = bandwidth.raised.count if bandwidth.raised is not None else 0
    return msgspec.structs.replace(
        bandwidth, raised=Raised(count=count + 1, begin_at=now, end_at=now + lasts)
    )


def is_due(bandwidth: Bandwidth, now: int) -> bool:
    """Whether a temporary increase has lasted as long as it may."""
    return bandwidth.raised is not None and not bandwidth.raised.over and bandwidth.raised.end_at <= now


def lowered(bandwidth: Bandwidth) -> Bandwidth:
    """Without the temporary increase, which is remembered: another one must wait, and they are counted."""
    assert bandwidth.raised is not None  # noqa: S101 - asked for by who has looked
    return msgspec.structs.replace(bandwidth, raised=msgspec.structs.replace(bandwidth.raised, over=True))


def choose(bandwidth: Bandwidth, targets: Mapping[str, int], now: int) -> Bandwidth:
    """With that for these shards, for good."""
    shards = bandwidth.shards | {shard_id: Chosen(mbit, now) for shard_id, mbit in targets.items()}
    return msgspec.structs.replace(bandwidth, shards=shards)


def target_fault(flavor: Flavor, mbit: int) -> str | None:
    """Why a shard cannot be given that; None: it can."""
    if not assured(flavor) <= mbit <= most(flavor):
        return f"a shard of this flavor can have {assured(flavor)} to {most(flavor)} Mbit/s"
    return None


def window(policy: Policy, now: int) -> tuple[int, int] | None:
    """The first and last of the whole minutes, since the epoch, whose traffic decides; None: the policy is
    younger."""
    last = now // MINUTE - 1
    first = last - policy.window_minutes + 1
    return (first, last) if first * MINUTE >= policy.since else None


def growth(bandwidth: Bandwidth, flavor: Flavor, usage: Mapping[str, float], *, now: int) -> dict[str, int]:
    """What the policy gives to shards that used more than it allows: twice as much. `usage`: Mbit/s of each,
    on average over the window. A shard that was changed lately is left alone: traffic from before counts no
    more."""
    policy = bandwidth.policy
    if policy is None:
        return {}
    found = {}
    for shard_id, mbit in usage.items():
        chosen = bandwidth.shards.get(shard_id)
        changed_at = chosen.at if chosen is not None else 0
        pause = max(policy.grow_pause * 1000, policy.window_minutes * MINUTE)
        usual = given(bandwidth, flavor, shard_id)
        higher = min(2 * usual, most(flavor))
        used = 100 * mbit / of_shard(bandwidth, flavor, shard_id)
        if used > policy.upper_percent and higher > usual and now >= changed_at + pause:
            found[shard_id] = higher
    return found
