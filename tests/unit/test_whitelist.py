"""Which whitelists can be had, what follows from them for the kernel, and how the kernel's lists are read."""

import os
import socket
import struct
from pathlib import Path

import pytest

from cacheyard.domain.whitelist import Fence, Group, Whitelist, digest, fault, fence, network
from cacheyard.engine import nft, ours, sockets
from cacheyard.engine.sockets import End

FRIENDS = Group("friends", ("10.0.0.1", "10.0.1.0/24"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.0.0.77/24", "10.0.0.0/24"),
        ("10.0.0.1/32", "10.0.0.1/32"),
    ],
)
def test_an_entry_is_an_address_or_a_range(text: str, meant: str) -> None:
    assert str(network(text)) == meant


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "10.0.0", "10.0.0.256", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/255.0.0.0"),
        *("::1", "::/0", "localhost", "10.0.0.1 ", "10.0.0.1-10.0.0.9", "10.0.0.1,10.0.0.2", "010.0.0.1"),
        *("10.0.0.1/٢٤", "10.0.0.1; flush ruleset", "10.0.0.1 }", "/24"),
    ],
)
def test_nothing_else_is(text: str) -> None:
    assert network(text) is None
    found = fault([Group("g", (text,))])
    assert found is not None
    assert found[0] == "ip_list"


@pytest.mark.parametrize(
    ("groups", "parameter"),
    [
        ([Group(f"g{number}", (f"10.0.0.{number}",)) for number in range(5)], "whitelist"),
        ([FRIENDS, Group("friends", ("10.0.0.9",))], "group_name"),
        ([Group("g", ())], "ip_list"),
        ([Group("g", ("0.0.0.0",))], "ip_list"),
        ([Group("g", ("0.0.0.0/0",))], "ip_list"),
        ([Group("g", ("10.0.0.1/0",))], "ip_list"),
        ([Group("g", ("0.0.0.0/32",))], "ip_list"),
        ([FRIENDS, Group("others", ("10.0.0.1",))], "ip_list"),
        ([Group("g", ("10.0.1.0/24", "10.0.1.7/24"))], "ip_list"),
        ([Group(f"g{n}", tuple(f"10.0.{n}.{m}" for m in range(7))) for n in range(3)], "ip_list"),
    ],
)
def test_what_cannot_be_had_names_the_parameter(groups: list[Group], parameter: str) -> None:
    found = fault(groups)
    assert found is not None
    assert found[0] == parameter


def test_four_groups_with_twenty_entries_can_be_had() -> None:
    assert fault([Group(f"g{n}", tuple(f"10.{n}.{m}.0/24" for m in range(5))) for n in range(4)]) is None
    assert fault([]) is None


@pytest.mark.parametrize(
    "whitelist", [None, Whitelist(False, (FRIENDS,)), Whitelist(True, ()), Whitelist(False, ())]
)
def test_a_whitelist_that_is_off_or_empty_lets_everybody_in(whitelist: Whitelist | None) -> None:
    assert fence("i", whitelist, ["127.64.0.1"]) is None
    assert digest(None) == ""


def test_ranges_are_joined_and_addresses_come_once() -> None:
    whitelist = Whitelist(True, (Group("a", ("10.0.0.0/25", "10.0.0.200/25")), Group("b", ("10.0.0.5",))))
    found = fence("i", whitelist, ["127.64.0.2", "127.64.0.1", "127.64.0.2"])
    assert found == Fence(instance_id="i", addresses=("127.64.0.1", "127.64.0.2"), allowed=("10.0.0.0/24",))
    assert digest(found) != digest(fence("i", whitelist, ["127.64.0.1"])) != ""


def test_the_whole_table_is_rendered_so_that_it_takes_the_place_of_the_last_one() -> None:
    one = Fence(instance_id="i", addresses=("127.64.0.1", "127.64.0.2"), allowed=("10.0.0.1/32",))
    two = Fence(instance_id="j", addresses=("127.64.0.9",), allowed=("10.0.0.0/24", "192.0.2.0/24"))
    lines = [line.strip() for line in nft.render("cacheyard_1", [one, two]).splitlines()]
    assert lines[:3] == ["add table ip cacheyard_1", "delete table ip cacheyard_1", "table ip cacheyard_1 {"]
    assert "set s1 { type ipv4_addr; flags interval; elements = { 10.0.0.0/24, 192.0.2.0/24 }; }" in lines
    assert f"chain o0 {{ meta skgid {ours.GROUP} accept; goto c0; }}" in lines
    places = "127.64.0.1 : goto {0}0, 127.64.0.2 : goto {0}0, 127.64.0.9 : goto {0}1"
    for way, chain in (("local", "o"), ("remote", "c")):
        said = places.format(chain)
        assert f"map {way} {{ type ipv4_addr : verdict; elements = {{ {said} }}; }}" in lines


def test_a_table_that_nobody_needs_is_not_there() -> None:
    assert nft.render("cacheyard_1", []).split() == [
        *("add", "table", "ip", "cacheyard_1"),
        *("delete", "table", "ip", "cacheyard_1"),
    ]


def test_the_table_says_whose_it_is_if_that_can_be_written() -> None:
    one = Fence(instance_id="i", addresses=("127.64.0.1",), allowed=("10.0.0.1/32",))
    assert '  comment "/var/lib/yard one"' in nft.render("cacheyard_1", [one], Path("/var/lib/yard one"))
    for path in ('/a"; flush ruleset; "', "/a\n", "/" + "a" * 130, "/a\\"):
        assert "comment" not in nft.render("cacheyard_1", [one], Path(path))


def test_two_yards_have_two_tables() -> None:
    names = {nft.table_of(Path(place)) for place in ("/a", "/b", "/a")}
    assert len(names) == 2
    assert all(name.startswith("cacheyard_") and len(name) <= 31 for name in names)


def test_connections_are_found_with_both_ends_and_whose_they_are() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as client, listening.accept()[0] as taken:
            found = {one.inode: one for one in sockets.every()}
            mine, other = (found[os.fstat(end.fileno()).st_ino] for end in (client, taken))
            assert (mine.here, mine.there) == (other.there, other.here)
            assert mine.here == End(*client.getsockname())
        assert os.fstat(listening.fileno()).st_ino not in found


@pytest.mark.skipif(sockets.fault() is not None, reason=f"connections cannot be cut: {sockets.fault()}")
def test_one_that_is_over_when_it_is_to_be_cut_costs_nobody_anything() -> None:
    """For its ends the kernel finds who listens there, and ended it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with listening.accept()[0] as taken:
            (one,) = [one for one in sockets.every() if one.inode == os.fstat(taken.fileno()).st_ino]
            client.close()  # with a reset: nothing is left of it
        assert not sockets.destroy(one)
        with socket.create_connection(listening.getsockname(), timeout=5), listening.accept()[0]:
            pass
