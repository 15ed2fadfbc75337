"""Where names lead, and what queries for them are answered with."""

import random
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from dns import flags, message, opcode, rcode, rdataclass, rdatatype

from cacheyard.dns.answer import LARGEST, PLAIN, answer, unable
from cacheyard.dns.zone import Zone
from cacheyard.domain.names import (
    TTL,
    Member,
    Named,
    addresses,
    readonly_addresses,
    zone_fault,
    zone_name,
)
from cacheyard.domain.nodes import NodeState, Role, Run

ZONE = "dcs.yard-1.internal"
MASTER = Member(
    role=Role.MASTER,
    ip="m",
    run=Run.UP,
    state=NodeState.ACTIVE,
    in_dns=True,
    added=False,
    follows=False,
)
A, B = (msgspec.structs.replace(MASTER, role=Role.REPLICA, ip=ip, follows=True) for ip in "ab")


def but(member: Member, **changes: Any) -> Member:
    return msgspec.structs.replace(member, **changes)


def named(*members: Member, cache_mode: str = "ha", growing: bool = False) -> Named:
    return Named(id="1", cache_mode=cache_mode, ip="i", growing=growing, members=list(members))


# --- where names lead ------------------------------------------------------------------------------

DEAD: dict[str, Any] = {"state": NodeState.INACTIVE}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param([MASTER, A, B], ["a", "b"], id="all replicas"),
        pytest.param([A, MASTER], ["a"], id="whatever their order"),
        pytest.param([MASTER, but(A, in_dns=False), B], ["b"], id="not one that was taken out"),
        pytest.param([MASTER, but(A, **DEAD), B], ["b"], id="not one that is away"),
        pytest.param([MASTER, but(A, run=Run.GONE), B], ["b"], id="not one that is being removed"),
        pytest.param([MASTER, but(A, follows=False), B], ["b"], id="not one that is behind"),
        pytest.param([MASTER, but(A, follows=False)], ["i"], id="a master before one that is behind"),
        pytest.param([MASTER, but(A, **DEAD), but(B, in_dns=False)], ["i"], id="a master before nothing"),
        pytest.param(
            [but(MASTER, **DEAD), but(A, follows=False)], ["a"], id="one that is behind before a dead master"
        ),
        pytest.param([but(MASTER, **DEAD), but(A, **DEAD)], ["i"], id="never nowhere"),
        pytest.param([], ["i"], id="never nowhere, without nodes"),
    ],
)
def test_the_read_only_name_leads_to_replicas_that_have_what_the_master_has(
    members: Sequence[Member], expected: list[str]
) -> None:
    assert readonly_addresses(named(*members)) == expected


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        pytest.param(named(MASTER, cache_mode="single"), ["i"], id="single"),
        pytest.param(named(MASTER, A), ["i"], id="ha: the address that follows the master"),
        pytest.param(named(MASTER, A, B, cache_mode="cluster"), ["m", "a", "b"], id="cluster: all nodes"),
        pytest.param(named(but(MASTER, **DEAD), A, cache_mode="cluster"), ["a"], id="cluster: that are up"),
        pytest.param(
            named(MASTER, but(A, added=True), cache_mode="cluster", growing=True),
            ["m"],
            id="cluster: none that may not have met the others yet",
        ),
        pytest.param(
            named(MASTER, but(A, added=True), cache_mode="cluster"), ["m", "a"], id="cluster: once it has"
        ),
        pytest.param(
            named(but(MASTER, **DEAD), but(A, **DEAD), cache_mode="cluster"), ["m", "a"], id="never nowhere"
        ),
    ],
)
def test_a_name_leads_to_where_clients_connect(instance: Named, expected: list[str]) -> None:
    assert addresses(instance) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "dcs.yard-1.internal"), ("Cache.Example.COM.", "cache.example.com"), ("local", "local")],
)
def test_a_zone_is_of_the_region_unless_it_is_chosen(given: str, expected: str) -> None:
    assert zone_name(given, "yard-1") == expected
    assert zone_fault(expected) is None


@pytest.mark.parametrize(
    "zone", ["", ".", "a..b", "-a.b", "a-.b", "a_b.c", "a b", "ü.de", "a" * 64, "a." * 101]
)
def test_what_cannot_be_a_zone_is_said(zone: str) -> None:
    assert zone_fault(zone)


# --- what is answered ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zone() -> Zone:
    many = [but(MASTER, ip=f"127.64.{number // 250}.{number % 250 + 1}") for number in range(300)]
    ha = [but(MASTER, ip="127.64.0.2"), but(A, ip="127.64.0.3"), but(B, ip="127.64.0.4")]
    return Zone(
        ZONE,
        "127.0.0.1",
        7,
        [
            Named(id="ha", cache_mode="ha", ip="127.64.0.9", growing=False, members=ha),
            Named(id="small", cache_mode="single", ip="127.64.0.8", growing=False, members=[]),
            Named(id="wide", cache_mode="cluster", ip="127.64.0.7", growing=False, members=many[:60]),
            Named(id="huge", cache_mode="cluster", ip="127.64.0.6", growing=False, members=many),
        ],
    )


def ask(zone: Zone, name: str, kind: str = "A", *, stream: bool = False, **more: Any) -> message.Message:
    """What a query is answered with; never much more than was asked for nothing."""
    query = message.make_query(name, kind, **more)
    wire = answer(query.to_wire(), zone, stream=stream)
    assert wire is not None
    reply = message.from_wire(wire)
    assert query.is_response(reply)
    if not reply.answer:
        assert len(wire) <= len(query.to_wire()) + 60
    return reply


def found(reply: message.Message) -> list[str]:
    assert reply.rcode() == rcode.NOERROR
    assert reply.flags & flags.AA
    assert not reply.flags & flags.RA
    return [record.to_text() for records in reply.answer for record in records]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"redis-ha.{ZONE}", ["127.64.0.9"]),
        (f"redis-ha-readonly.{ZONE}", ["127.64.0.3", "127.64.0.4"]),
        (f"redis-small.{ZONE}", ["127.64.0.8"]),
        ("ReDiS-hA.DCS.Yard-1.INTERNAL", ["127.64.0.9"]),
        (f"ns.{ZONE}", ["127.0.0.1"]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_names_have_their_addresses(zone: Zone, name: str, expected: list[str], stream: bool) -> None:
    reply = ask(zone, name, stream=stream)
    assert sorted(found(reply)) == expected
    assert reply.answer[0].ttl == TTL
    assert reply.question[0].name.to_text() == name + "."  # in the client's own letters


@pytest.mark.parametrize(
    "name",
    [
        f"redis-nobody.{ZONE}",
        f"redis-small-readonly.{ZONE}",
        f"redis-wide-readonly.{ZONE}",
        f"x.redis-ha.{ZONE}",
        f"redis-ha.x.{ZONE}",
        f"\\000.{ZONE}",
    ],
)
@pytest.mark.parametrize("kind", ["A", "AAAA", "ANY", "TXT"])
def test_a_name_that_is_not_there_is_denied_for_a_short_time(zone: Zone, name: str, kind: str) -> None:
    reply = ask(zone, name, kind)
    assert reply.rcode() == rcode.NXDOMAIN
    assert reply.flags & flags.AA
    assert [records.rdtype for records in reply.authority] == [rdatatype.SOA]
    assert (reply.authority[0].ttl, reply.authority[0][0].minimum) == (TTL, TTL)


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "MX", "SRV", "HTTPS", "CNAME", "DS", "TYPE65280"])
@pytest.mark.parametrize("name", [f"redis-ha.{ZONE}", f"ns.{ZONE}", ZONE])
def test_a_name_without_such_records_is_there_all_the_same(zone: Zone, name: str, kind: str) -> None:
    reply = ask(zone, name, kind)
    assert found(reply) == []
    assert [records.rdtype for records in reply.authority] == [rdatatype.SOA]


def test_the_zone_says_who_serves_it(zone: Zone) -> None:
    assert found(ask(zone, ZONE, "NS")) == [f"ns.{ZONE}."]
    (soa,) = found(ask(zone, ZONE, "SOA"))
    assert soa.split()[:3] == [f"ns.{ZONE}.", f"hostmaster.{ZONE}.", "7"]


@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("example.com", "A", {}),
        ("internal", "NS", {}),
        (".", "NS", {}),
        (f"x{ZONE}", "A", {}),
        (f"redis-ha.{ZONE}", "A", {"rdclass": rdataclass.CH}),
        (f"redis-ha.{ZONE}", "A", {"rdclass": rdataclass.ANY}),
        (ZONE, "AXFR", {}),
        (ZONE, "MAILB", {}),
        (ZONE, "OPT", {}),
    ],
)
def test_what_is_not_ours_is_refused(zone: Zone, name: str, kind: str, more: dict[str, Any]) -> None:
    reply = ask(zone, name, kind, **more)
    assert reply.rcode() == rcode.REFUSED
    assert not reply.flags & flags.AA
    assert not reply.answer + reply.authority + reply.additional


def test_a_query_for_everything_gets_one_small_record(zone: Zone) -> None:
    assert found(ask(zone, f"redis-huge.{ZONE}", "ANY")) == ['"RFC8482" ""']


@pytest.mark.parametrize(
    ("payload", "most"), [(None, PLAIN), (100, PLAIN), (600, 600), (1100, 1100), (65535, LARGEST)]
)
def test_an_answer_fits_what_the_client_takes_or_is_left_to_tcp(
    zone: Zone, payload: int | None, most: int
) -> None:
    edns: dict[str, Any] = {} if payload is None else {"use_edns": 0, "payload": payload}
    for host, count in (("redis-wide", 60), ("redis-huge", 300)):
        query = message.make_query(f"{host}.{ZONE}", "A", **edns)
        wire = answer(query.to_wire(), zone, stream=False)
        assert wire is not None
        assert len(wire) <= most
        reply = message.from_wire(wire)
        fits = 16 * count + 60 <= most
        assert bool(reply.flags & flags.TC) is not fits
        assert len(found(reply)) == (count if fits else 0)
        if not fits:
            assert len(wire) <= len(query.to_wire())
        if payload is None:
            assert reply.edns == -1
        else:
            assert (reply.edns, reply.payload) == (0, LARGEST)
        whole = ask(zone, f"{host}.{ZONE}", stream=True, **edns)
        assert len(set(found(whole))) == count
        assert not whole.flags & flags.TC


def test_padding_that_is_asked_for_makes_no_datagram_longer(zone: Zone) -> None:
    query = message.make_query("example.com", "A", use_edns=0, pad=100)
    wire = answer(query.to_wire(), zone, stream=False)
    assert wire is not None
    assert len(wire) <= len(query.to_wire())


def test_a_newer_edns_is_declined(zone: Zone) -> None:
    reply = ask(zone, f"redis-ha.{ZONE}", use_edns=1)
    assert (reply.rcode(), reply.edns) == (rcode.BADVERS, 0)
    assert not reply.answer


@pytest.mark.parametrize("kind", [opcode.NOTIFY, opcode.UPDATE, opcode.STATUS, opcode.IQUERY, 15])
def test_other_requests_than_queries_are_declined(zone: Zone, kind: int) -> None:
    changed = bytearray(message.make_query(ZONE, "SOA").to_wire())
    changed[2] = kind << 3
    wire = bytes(changed)
    reply = answer(wire, zone, stream=False)
    assert reply is not None
    assert (len(reply), reply[:2], reply[2] >> 3 & 15, reply[3] & 15) == (12, wire[:2], kind, rcode.NOTIMP)


def test_an_answer_is_not_answered(zone: Zone) -> None:
    query = message.make_query(f"redis-ha.{ZONE}", "A")
    reply = message.make_response(query).to_wire()
    assert answer(reply, zone, stream=False) is None
    assert unable(reply) is None


@pytest.mark.parametrize("length", range(12))
def test_what_has_no_header_is_not_answered(zone: Zone, length: int) -> None:
    wire = message.make_query(f"redis-ha.{ZONE}", "A").to_wire()[:length]
    assert answer(wire, zone, stream=False) is None
    assert unable(wire) is None


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0), (2, 0, 0, 0), (65535, 0, 0, 0), (1, 1, 0, 0), (1, 0, 9, 0), (1, 0, 0, 3)]
)
def test_a_query_has_one_question_and_nothing_else(zone: Zone, counts: tuple[int, ...]) -> None:
    changed = bytearray(message.make_query(f"redis-ha.{ZONE}", "A").to_wire())
    changed[4:12] = b"".join(count.to_bytes(2) for count in counts)
    wire = bytes(changed)
    reply = answer(wire + bytes(4000), zone, stream=False)
    assert reply is not None
    assert (len(reply), reply[:2], reply[3] & 15) == (12, wire[:2], rcode.FORMERR)


def test_a_server_that_cannot_read_its_rows_says_so() -> None:
    query = message.make_query(f"redis-ha.{ZONE}", "A")
    wire = unable(query.to_wire())
    assert wire is not None
    assert message.from_wire(wire).rcode() == rcode.SERVFAIL


def test_no_packet_breaks_the_server_or_makes_it_say_much_more_than_it_was_told(zone: Zone) -> None:
    chance = random.Random(20261122)
    asked = [
        message.make_query(name, kind, use_edns=edns, pad=pad).to_wire()
        for name in (f"redis-ha.{ZONE}", ZONE, ".", "a." * 100 + "b")
        for kind in ("A", "SOA", "OPT", "TSIG", "ANY", "TYPE65535")
        for edns in (-1, 0)
        for pad in (0, 64)
    ]
    answered = 0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        wire = bytearray(
            chance.choice(asked) if chance.random() < 0.9 else chance.randbytes(chance.randrange(600))
        )
        for _ in range(chance.randrange(6)):
            if wire:
                wire[chance.randrange(len(wire))] = chance.randrange(256)
        if chance.random() < 0.2:
            del wire[chance.randrange(len(wire) + 1) :]
        if chance.random() < 0.2:
            wire += chance.randbytes(chance.randrange(60))
        if len(wire) >= 12 and chance.random() < 0.8:  # so that more than the header is looked at
            wire[2:12] = bytes([chance.randrange(8), 0, 0, 1, 0, 0, 0, 0, 0, chance.randrange(3)])
        reply = answer(bytes(wire), zone, stream=chance.random() < 0.5)
        if reply is not None:
            answered += 1
            message.from_wire(reply)
            assert len(reply) <= len(wire) + 70
    assert answered > 1000
