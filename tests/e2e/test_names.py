"""Names resolve: the zone is asked as resolvers ask it, while instances come, change and go."""

import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from dns import message, rcode, rdatatype
from dns.resolver import NXDOMAIN, Resolver
from huaweicloudsdkdcs import v2 as dcs
from redis.exceptions import ReadOnlyError
from support.caches import HA, SINGLE, Cache, body_for, made, refused, remove
from support.service import DISK, Service
from support.waiting import until

from cacheyard.domain.names import TTL

HOST = "127.0.0.1"
HA_TWO = "redis.ha.xu1.tiny.r3.128"  # a master and two replicas
CLUSTER = "redis.cluster.xu1.large.r2.4"
SECONDS = 20.0  # until rows have followed what happened to servers


def free_port() -> int:
    """A port that is free for UDP and for TCP."""
    while True:
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            stream.bind((HOST, 0))
            port: int = stream.getsockname()[1]
            try:
                datagrams.bind((HOST, port))
            except OSError:
                continue
            return port


class Names:
    """A service with a zone, and a resolver that knows nobody else."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.zone = f"dcs.{service.facts.region}.internal"
        self.resolver = Resolver(configure=False)
        self.resolver.nameservers = [HOST]
        self.resolver.port = port
        self.resolver.lifetime = 5.0

    def addresses(self, name: str, *, tcp: bool = False) -> set[str]:
        """Where a name leads."""
        found = self.resolver.resolve(name, "A", tcp=tcp)
        assert found.rrset is not None
        assert found.rrset.ttl == TTL
        return {record.to_text() for record in found.rrset}

    def until(self, name: str, expected: set[str]) -> None:
        """Wait until a name leads there."""
        seen: set[str] = set()

        def leads() -> bool:
            seen.clear()
            seen.update(self.addresses(name))
            return seen == expected

        until(leads, seconds=SECONDS, what=f"{name} to lead to {sorted(expected)}, not {seen}")

    def datagram(self, wire: bytes) -> bytes:
        """What a datagram is answered with."""
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(wire, (HOST, self.port))
            return client.recv(65535)

    def serves(self) -> bool:
        """Whether it answers, by UDP and by TCP. The resolver asks again for what is lost."""
        return bool(self.resolver.resolve(self.zone, "SOA")) and bool(
            self.resolver.resolve(self.zone, "SOA", tcp=True)
        )


@pytest.fixture(scope="module")
def names() -> Iterator[Names]:
    """One service for all tests here."""
    port = free_port()
    with Service(CACHEYARD_DNS_PORT=str(port), CACHEYARD_OVERCOMMIT="20") as service:
        yield Names(service, port)


@pytest.fixture(scope="module")
def pair(names: Names) -> Iterator[Cache]:
    """A master with two replicas, all of which the read-only name has; who is master may change."""
    with made(names.service, name="pair", spec_code=HA_TWO) as cache:
        yield cache


def nodes_of(cache: Cache, kind: str = "") -> list[dict[str, Any]]:
    """The nodes as the API shows them: all, or of kind master or slave."""
    answer = cache.http("GET", "/logical-nodes")
    assert answer.status_code == 200, answer.text
    return [node for node in answer.json()["nodes"] if kind in ("", node["node_type"])]


def ips(nodes: list[dict[str, Any]]) -> set[str]:
    """Their addresses."""
    return {node["node_ip"] for node in nodes}


def process_of(cache: Cache, node: dict[str, Any]) -> int:
    """Of a node's server."""
    with cache.client(host=node["node_ip"], port=int(node["node_port"])) as link:
        info: Any = link.info("server")
    return int(info["process_id"])


def kill(cache: Cache, *nodes: dict[str, Any]) -> None:
    """End servers at once. They are started again within a fraction of a second, and are behind for long."""
    for pid in [process_of(cache, node) for node in nodes]:
        os.kill(pid, signal.SIGKILL)


def _has(link: Any, key: str) -> bool:
    return link.get(key) is not None


def remove_ip(cache: Cache, node: dict[str, Any], **other: str) -> Any:
    """By the SDK, from the read-only name."""
    named = {"group_id": node["group_id"], "node_id": node["node_id"]} | other
    request = dcs.DeleteIpFromDomainNameRequest(instance_id=cache.id, **named)
    return cache.service.sdk().delete_ip_from_domain_name(request)


def job(service: Service, job_id: str) -> dict[str, Any]:
    """How a job stands."""
    answer = service.http("GET", f"/v2/{{p}}/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def await_job(service: Service, job_id: str) -> dict[str, Any]:
    """Wait for a job's good end."""
    until(lambda: job(service, job_id)["status"] != "RUNNING", seconds=SECONDS, what="the job to end")
    ended = job(service, job_id)
    assert ended["status"] == "SUCCESS", ended
    return ended


# --- what instances are called ---------------------------------------------------------------------


def test_an_instance_has_a_name_that_leads_to_it_as_long_as_it_is_there(names: Names) -> None:
    with made(names.service) as cache:
        shown = cache.show()
        name = f"redis-{cache.id}.{names.zone}"
        assert (shown["domain_name"], shown["domainName"]) == (name, name)
        assert shown.get("readonly_domain_name") is None
        assert shown["domain_name_info"]["zone_name"] == names.zone
        assert shown["domain_name_info"]["is_latest_rules"] is True
        assert shown["domain_name_info"]["support_public_resolve"] is False
        assert names.addresses(name) == names.addresses(name.upper(), tcp=True) == {shown["ip"]}
        with cache.client(host=names.addresses(name).pop(), port=shown["port"]) as link:
            assert link.ping()
        listed = names.service.http("GET", "/v2/{p}/instances").json()["instances"]
        assert [one["domain_name"] for one in listed if one["instance_id"] == cache.id] == [name]
        older = names.service.http("GET", f"/v1.0/{{p}}/instances/{cache.id}").json()
        assert older["domain_name"] == older["domainName"] == name
    with pytest.raises(NXDOMAIN):
        names.addresses(name)


def test_a_name_leads_somewhere_from_the_answer_that_made_the_instance_on(names: Names) -> None:
    answer = names.service.http("POST", "/v2/{p}/instances", json=body_for(names.service)).json()
    cache = Cache(names.service, answer["instances"][0]["instance_id"])
    try:
        assert names.addresses(f"redis-{cache.id}.{names.zone}") == {cache.show()["ip"]}
    finally:
        cache.until_running()
        remove(cache)


def test_a_cluster_is_found_by_all_its_nodes(names: Names) -> None:
    with made(names.service, name="cluster-1", spec_code=CLUSTER, capacity=4) as cache:
        shown = cache.show()
        everywhere = ips(nodes_of(cache))
        assert len(everywhere) == 6
        assert shown.get("readonly_domain_name") is None
        assert names.addresses(shown["domain_name"]) == everywhere
        with refused(400, "DCS.4086", "cluster"):
            remove_ip(cache, nodes_of(cache, "slave")[0])


# --- the read-only name ----------------------------------------------------------------------------


def test_the_read_only_name_leads_to_the_replicas(names: Names, pair: Cache) -> None:
    shown = pair.show()
    readonly = f"redis-{pair.id}-readonly.{names.zone}"
    assert (shown["readonly_domain_name"], shown["readonlyDomainName"]) == (readonly, readonly)
    assert names.addresses(shown["domain_name"]) == {shown["ip"]}
    names.until(readonly, ips(nodes_of(pair, "slave")))
    with pair.client() as master:
        master.set("read-me", "1")
    for ip in names.addresses(readonly, tcp=True):
        with pair.client(host=ip, port=shown["port"]) as replica:
            until(partial(_has, replica, "read-me"), seconds=5, what="the replica to have it")
            with pytest.raises(ReadOnlyError):
                replica.set("read-me", "2")


def test_reads_go_elsewhere_while_replicas_are_away(names: Names, pair: Cache) -> None:
    shown = pair.show()
    readonly, (one, other) = shown["readonly_domain_name"], nodes_of(pair, "slave")
    names.until(readonly, ips([one, other]))
    kill(pair, one)
    names.until(readonly, ips([other]))
    names.until(readonly, ips([one, other]))
    kill(pair, one, other)
    names.until(readonly, {shown["ip"]})
    names.until(readonly, ips([one, other]))


def test_the_read_only_name_follows_a_switchover(names: Names, pair: Cache) -> None:
    readonly, (old,) = pair.show()["readonly_domain_name"], nodes_of(pair, "master")
    asked = dcs.ChangeMasterStandbyAsyncRequest(instance_id=pair.id)
    await_job(names.service, names.service.sdk().change_master_standby_async(asked).job_id)
    (new,) = nodes_of(pair, "master")
    assert new != old
    assert ips([new]).isdisjoint(names.addresses(readonly))
    names.until(readonly, ips(nodes_of(pair)) - ips([new]))


def test_the_read_only_name_follows_a_failover(names: Names, pair: Cache) -> None:
    shown = pair.show()
    readonly, (old,) = shown["readonly_domain_name"], nodes_of(pair, "master")
    names.until(readonly, ips(nodes_of(pair)) - ips([old]))
    kill(pair, old)
    until(lambda: ips(nodes_of(pair, "master")) != ips([old]), seconds=SECONDS, what="a new master")
    names.until(readonly, ips(nodes_of(pair)) - ips(nodes_of(pair, "master")))
    assert ips([old]) < names.addresses(readonly)
    assert names.addresses(shown["domain_name"]) == {shown["ip"]}
    pair.until_running()


def test_the_read_only_name_follows_the_number_of_replicas(names: Names) -> None:
    with made(names.service, name="growing", spec_code=HA) as cache:
        readonly = cache.show()["readonly_domain_name"]
        names.until(readonly, ips(nodes_of(cache, "slave")))
        for spec_code, change_type, count in (
            (HA_TWO, "createReplication", 2),
            (HA, "deleteReplication", 1),
        ):
            body = {"spec_code": spec_code, "new_capacity": 0.125, "change_type": change_type}
            answer = cache.http("POST", "/resize", json=body)
            assert answer.status_code in (200, 204), answer.text
            cache.until_running()
            assert len(nodes_of(cache, "slave")) == count
            names.until(readonly, ips(nodes_of(cache, "slave")))


# --- 5.3.2 -----------------------------------------------------------------------------------------


def test_a_replica_leaves_the_read_only_name_and_nothing_else(names: Names) -> None:
    with made(names.service, name="leaving", spec_code=HA_TWO) as cache:
        shown = cache.show()
        readonly, (leaving, staying) = shown["readonly_domain_name"], nodes_of(cache, "slave")
        names.until(readonly, ips([leaving, staying]))
        begun = time.monotonic()
        path = f"/groups/{leaving['group_id']}/replications/{leaving['node_id']}/remove-ip"
        answer = cache.http("DELETE", path)
        assert answer.status_code == 200, answer.text
        job_id = answer.json()["job_id"]
        assert answer.json() == {"job_id": job_id, "jobId": job_id}
        assert names.addresses(readonly) == ips([staying])
        assert cache.act("restart").json()["error_code"] == "DCS.4114"
        assert await_job(names.service, job_id)["job_type"] == "RemoveIpFromDns"
        assert time.monotonic() - begun >= TTL - 0.1  # resolvers have forgotten it too
        (task,) = (one for one in cache.tasks() if one["id"] == job_id)
        assert (task["name"], task["status"]) == ("RemoveIpFromDns", "SUCCESS")
        assert task["details"]["replica_ip"] == leaving["node_ip"]
        assert task["details"]["replica_az"] == leaving["az_code"]
        assert task["details"]["group_name"] == leaving["group_name"]
        assert names.addresses(readonly) == ips([staying])
        assert cache.until_running()["domain_name"] == shown["domain_name"]
        assert {node["node_ip"]: node["is_remove_ip"] for node in nodes_of(cache, "slave")} == {
            leaving["node_ip"]: True,
            staying["node_ip"]: False,
        }
        with cache.client(host=leaving["node_ip"], port=shown["port"]) as link:
            assert link.info("replication")["role"] == "slave"
        with refused(400, "DCS.4027", "node_id", "no more"):
            remove_ip(cache, leaving)
        with refused(400, "DCS.4879", "node_id"):
            remove_ip(cache, staying)
        assert names.addresses(readonly) == ips([staying])
        kill(cache, staying)
        names.until(readonly, {shown["ip"]})  # rather than to the one that was taken out


def test_what_cannot_leave_is_refused(names: Names, pair: Cache) -> None:
    (master,), (replica, _) = nodes_of(pair, "master"), nodes_of(pair, "slave")
    before = len(pair.tasks())
    with refused(400, "DCS.4027", "node_id", "master"):
        remove_ip(pair, master)
    with refused(400, "DCS.3053", "node_id", "nobody"):
        remove_ip(pair, replica, node_id="nobody")
    with refused(404, "DCS.4001", "group_id", "nothing"):
        remove_ip(pair, replica, group_id="nothing")
    with made(names.service, spec_code=SINGLE) as single:
        (only,) = nodes_of(single, "master")
        with refused(400, "DCS.4086", "single"):
            remove_ip(single, only)
        with refused(400, "DCS.3053", "node_id"):
            remove_ip(pair, replica, node_id=only["node_id"])
    with refused(404, "DCS.3022"):
        remove_ip(Cache(names.service, "nobody"), replica)
    assert len(pair.tasks()) == before
    assert not any(node["is_remove_ip"] for node in nodes_of(pair))


def test_a_removal_is_finished_by_the_next_service(fresh_service: Callable[..., Service]) -> None:
    port = free_port()
    service = fresh_service(CACHEYARD_DNS_PORT=str(port))
    with made(service, name="leaving", spec_code=HA_TWO) as cache:
        names = Names(service, port)
        leaving, staying = nodes_of(cache, "slave")
        job_id = remove_ip(cache, leaving).job_id
        service.kill()
        service.start()
        await_job(service, job_id)
        names.until(cache.until_running()["readonly_domain_name"], ips([staying]))


def test_without_a_name_server_there_are_no_names_but_removals_are_remembered(
    fresh_service: Callable[..., Service],
) -> None:
    service = fresh_service()
    with made(service, name="nameless", spec_code=HA_TWO) as cache:
        (listed,) = service.http("GET", "/v2/{p}/instances").json()["instances"]
        for shown in (cache.show(), listed):
            assert not {key: value for key, value in shown.items() if "omain" in key and value is not None}
        leaving, staying = nodes_of(cache, "slave")
        begun = time.monotonic()
        await_job(service, remove_ip(cache, leaving).job_id)
        assert time.monotonic() - begun < TTL  # nobody can have heard of it
        port = free_port()
        service.restart(CACHEYARD_DNS_PORT=str(port), CACHEYARD_DNS_ZONE="Caches.Example.")
        readonly = f"redis-{cache.id}-readonly.caches.example"
        assert cache.show()["readonly_domain_name"] == readonly
        Names(service, port).until(readonly, ips([staying]))


# --- the server ------------------------------------------------------------------------------------


def test_answers_are_as_fresh_as_rows_that_another_process_writes(names: Names, pair: Cache) -> None:
    readonly, (one, other) = pair.show()["readonly_domain_name"], nodes_of(pair, "slave")
    names.until(readonly, ips([one, other]))
    with closing(sqlite3.connect(names.service.data / "cacheyard.sqlite", timeout=30)) as rows:
        for in_dns, expected in ((0, ips([other])), (1, ips([one, other]))):
            rows.execute("UPDATE nodes SET in_dns = ? WHERE id = ?", (in_dns, one["node_id"]))
            rows.commit()
            assert names.addresses(readonly) == expected


def test_no_packet_stops_the_server(names: Names, pair: Cache) -> None:
    chance = random.Random(20261122)
    asked = message.make_query(pair.show()["domain_name"], "A", use_edns=0).to_wire()
    for _ in range(2000):
        wire = bytearray(asked if chance.random() < 0.8 else chance.randbytes(chance.randrange(1, 1500)))
        for _ in range(chance.randrange(1, 5)):
            wire[chance.randrange(len(wire))] = chance.randrange(256)
        with socket.socket(type=socket.SOCK_DGRAM) as gone:  # nobody takes the answer
            gone.sendto(wire[: chance.randrange(len(wire) + 1)], (HOST, names.port))
    assert names.serves()
    for _ in range(100):
        with socket.create_connection((HOST, names.port), 5) as stream:
            stream.sendall(chance.randbytes(chance.randrange(200)))
    assert names.serves()
    assert "failed in the background" not in names.service.log()


def test_a_connection_takes_many_queries_at_once(names: Names) -> None:
    asked = [message.make_query(names.zone, kind) for kind in ("SOA", "NS", "A", "ANY") * 50]
    with socket.create_connection((HOST, names.port), 5) as stream:
        for one in asked:
            stream.sendall(one.to_wire(prepend_length=True))
        with stream.makefile("rb") as answers:
            for one in asked:
                answer = message.from_wire(answers.read(int.from_bytes(answers.read(2))))
                assert one.is_response(answer)


def test_connections_that_say_nothing_are_few_and_queries_short(names: Names) -> None:
    with socket.create_connection((HOST, names.port), 5) as stream:
        stream.sendall(b"\xff\xff" + bytes(100))
        assert stream.recv(100) == b""
    idle = [socket.create_connection((HOST, names.port), 5) for _ in range(80)]
    try:
        assert sum(_ended(stream) for stream in idle) == 30
        assert names.resolver.resolve(names.zone, "SOA")
    finally:
        for stream in idle:
            stream.close()
    assert names.serves()


def _ended(stream: socket.socket) -> bool:
    """Whether the other side has ended a connection on which nothing was said."""
    stream.settimeout(0.05)
    try:
        return stream.recv(1) == b""
    except TimeoutError:
        return False


def test_a_connection_does_not_keep_the_service_from_ending(fresh_service: Callable[..., Service]) -> None:
    port = free_port()
    service = fresh_service(CACHEYARD_DNS_PORT=str(port))
    with socket.create_connection((HOST, port), 5) as stream:
        stream.sendall(b"\0")
        begun = time.monotonic()
        service.restart()
        assert time.monotonic() - begun < 8
        assert stream.recv(1) == b""
    assert Names(service, port).serves()
    assert "Traceback" not in service.log()


def test_what_is_not_the_zones_is_refused(names: Names) -> None:
    for name in ("example.com", "localhost"):
        answer = message.from_wire(names.datagram(message.make_query(name, "A").to_wire()))
        assert (answer.rcode(), answer.answer) == (rcode.REFUSED, [])
    unknown = message.from_wire(names.datagram(message.make_query(f"redis-x.{names.zone}", "A").to_wire()))
    assert unknown.rcode() == rcode.NXDOMAIN
    assert [records.rdtype for records in unknown.authority] == [rdatatype.SOA]


def start(*options: str, **environment: str) -> tuple[int, str]:
    """How a start that cannot be ends, and what it says."""
    with tempfile.TemporaryDirectory(prefix="cacheyard-test-", dir=DISK) as home:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "cacheyard",
                "up",
                "--data",
                f"{home}/data",
                "--port=0",
                *options,
            ],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(("kind", "by"), [(socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")])
def test_a_port_that_is_taken_is_named(kind: socket.SocketKind, by: str) -> None:
    with socket.socket(type=kind) as taken:
        taken.bind((HOST, 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        port = taken.getsockname()[1]
        code, said = start("--dns-port", str(port))
    assert code == 1
    for word in ("names", "dns_port", by, f"{HOST}:{port}", "already in use"):
        assert word in said


def test_a_zone_or_port_that_cannot_be_is_named() -> None:
    code, said = start("--dns-port", str(free_port()), CACHEYARD_DNS_ZONE="a_b")
    assert (code, "dns_zone" in said, "a_b" in said) == (1, True, True)
    code, said = start("--dns-port", str(free_port()), "--region", "my_region")
    assert (code, "dns_zone" in said, "dcs.my_region.internal" in said) == (1, True, True)
    code, said = start(CACHEYARD_DNS_PORT="65536")
    assert (code, "dns_port" in said) == (2, True)
