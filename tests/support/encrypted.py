"""Instances that speak TLS in tests: whom their clients trust, and clients that do."""

import io
import socket
import ssl
import zipfile
from typing import Any

import httpx
import redis
from cryptography import x509
from redis.cluster import RedisCluster
from support.caches import PASSWORD, Cache, first_ip
from support.proxied import job
from support.waiting import until


def link_of(cache: Cache) -> str:
    """Where the authority's certificate is to be had."""
    answer = cache.http("POST", "/ssl-certs/download")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["link"])


def authority(cache: Cache) -> str:
    """The first file behind the link, got as Terraform does: without any credentials."""
    answer = httpx.get(link_of(cache), verify=cache.service.trust())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as found:
        name, *_ = found.namelist()
        assert name == "ca.crt"
        return found.read(name).decode()


def switch(cache: Cache, on: bool) -> None:
    """Turn it on or off, and wait as clients do."""
    answer = cache.http("PUT", "/ssl", json={"enabled": on})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == "success"
    assert job(cache, answer.json()["job_id"]) == "SUCCESS", cache.tasks()[0]
    shown = cache.until_running()
    assert shown["enable_ssl"] is on
    assert cache.http("GET", "/ssl").json()["enabled"] is on


def client(cache: Cache, trusted: str, host: str | None = None) -> "redis.Redis":
    """One that trusts that authority alone, and wants the address that it dialled in the certificate."""
    where: dict[str, Any] = {} if host is None else {"host": host, "port": 6379}
    return cache.client(ssl=True, ssl_ca_data=trusted, ssl_check_hostname=True, **where)


def cluster_client(cache: Cache, trusted: str, host: str | None = None) -> RedisCluster:
    """The same for a Redis Cluster: it goes where MOVED sends it."""
    return RedisCluster(
        host=host or first_ip(cache.show()),
        port=6379,
        password=PASSWORD,
        ssl=True,
        ssl_ca_data=trusted,
        ssl_check_hostname=True,
        decode_responses=True,
        socket_timeout=10,
        socket_connect_timeout=5,
    )


def answers_plain(ip: str) -> bool:
    """Whether anybody there says something to a client without TLS."""
    with socket.create_connection((ip, 6379), timeout=5) as link:
        link.sendall(b"PING\r\n")
        try:
            return link.recv(1)[:1] in (b"+", b"-")
        except ConnectionResetError:
            return False


def certificate_of(ip: str, trusted: str) -> x509.Certificate:
    """What is shown to new clients there."""
    context = ssl.create_default_context(cadata=trusted)
    with (
        socket.create_connection((ip, 6379), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=ip) as link,
    ):
        shown = link.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


def until_in_sync(cache: Cache, trusted: str, replicas: int = 1) -> dict[str, Any]:
    """INFO of the master at the instance's address, once so many replicas have all it has."""

    def in_sync() -> dict[str, Any] | None:
        with client(cache, trusted) as link:
            info: dict[str, Any] = link.info("replication")
        there = [info[f"slave{number}"] for number in range(info["connected_slaves"])]
        following = [one for one in there if one["state"] == "online"]
        return info if info["role"] == "master" and len(following) == replicas else None

    return until(in_sync, seconds=60, what="the replicas to follow")
