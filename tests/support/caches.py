"""Instances in tests: made, waited for, looked at through the API and through Redis, and removed again."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any

import httpx
import redis
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkdcs import v2 as dcs
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.service import Service
from support.waiting import until

PASSWORD = "Cache-yard-1"
SINGLE = "redis.single.xu1.tiny.128"
HA = "redis.ha.xu1.tiny.r2.128"
SECONDS = 30.0  # for anything that a task does to an instance


def body_for(service: Service, **changes: Any) -> dict[str, Any]:
    """The body of a request that creates a small instance."""
    facts = service.facts
    body = {
        "name": "cache-1",
        "engine": "Redis",
        "engine_version": "7.0",
        "capacity": 0.125,
        "spec_code": SINGLE,
        "az_codes": facts.az_codes[:1],
        "vpc_id": facts.vpc_id,
        "subnet_id": facts.subnet_id,
        "password": PASSWORD,
    } | changes
    return {name: value for name, value in body.items() if value is not None}


def sdk_body(service: Service, **changes: Any) -> Any:
    """The same as the SDK's type."""
    return dcs.CreateInstanceBody(**body_for(service, **changes))


class Cache:
    """An instance of a service."""

    def __init__(self, service: Service, instance_id: str) -> None:
        self.service = service
        self.id = instance_id

    @property
    def path(self) -> str:
        """In the v2 API."""
        return f"/v2/{{p}}/instances/{self.id}"

    def http(self, method: str, below: str = "", **more: Any) -> httpx.Response:
        """A request on the instance, or on what is `below` it."""
        return self.service.http(method, self.path + below, **more)

    def show(self) -> dict[str, Any]:
        """The instance as the API shows it."""
        answer = self.http("GET")
        assert answer.status_code == 200, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    def is_gone(self) -> bool:
        """Whether the API says that there is no such instance."""
        answer = self.http("GET")
        if answer.status_code != 404:
            return False
        assert answer.json()["error_code"] == "DCS.3022"
        return True

    def until_running(self, status: str = "RUNNING") -> dict[str, Any]:
        """Wait as clients do, until the status is reached and no task is left; the instance as shown then."""
        shown: dict[str, Any] = {}

        def reached() -> bool:
            shown.update(self.show())
            assert shown["status"] in (status, "RUNNING") or shown["status"] not in (
                "ERROR",
                "CREATEFAILED",
            ), shown
            return shown["status"] == status and shown["task"] is None

        until(reached, seconds=SECONDS, what=f"{shown.get('name', self.id)} to be {status}")
        return shown

    def until_gone(self) -> None:
        """Wait for the end of a deletion."""
        until(self.is_gone, seconds=SECONDS, what=f"{self.id} to be gone")

    def act(self, action: str) -> httpx.Response:
        """restart, soft_restart, flush, stop or start."""
        body = {"instances": [self.id], "action": action}
        return self.service.http("PUT", "/v2/{p}/instances/status", json=body)

    def tasks(self) -> list[dict[str, Any]]:
        """The instance's background tasks, newest first."""
        found: list[dict[str, Any]] = self.http("GET", "/tasks").json()["tasks"]
        return found

    def addresses(self) -> list[str]:
        """Where the master and its replicas answer, the master first: told by the master itself."""
        shown = self.show()
        with self.client() as link:
            info: Any = link.info("replication")
        replicas = [
            info[name]["ip"] for name in sorted(info) if name.startswith("slave") and name[5:].isdigit()
        ]
        return [first_ip(shown), *replicas]

    def client(self, password: str | None = PASSWORD, **more: Any) -> "redis.Redis":
        """A Redis client of the instance's address, or of a Redis Cluster's first."""
        shown = {"ip": "", "port": 0} if {"host", "port"} <= set(more) else self.show()
        return redis.Redis(
            host=more.pop("host", first_ip(shown)),
            port=more.pop("port", shown["port"]),
            password=password,
            decode_responses=True,
            socket_timeout=10,
            socket_connect_timeout=5,
            retry=Retry(NoBackoff(), 0),
            **more,
        )


def first_ip(shown: dict[str, Any]) -> str:
    """The address of an instance as shown; of a Redis Cluster, which has several, the first."""
    return str(shown["ip"]).partition(",")[0]


def pid_of(cache: Cache, password: str | None = PASSWORD) -> int:
    """Of the server that answers at the instance's address."""
    with cache.client(password) as link:
        info: Any = link.info("server")
    return int(info["process_id"])


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server that answers nothing, so that a task on its instance stays under way."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def one_of_each(service: Service, forms: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, "Cache"]]:
    """A running instance of each form, by its name."""
    with ExitStack() as there:
        yield {
            form: there.enter_context(made(service, **{"name": f"of-{form}", **how}))
            for form, how in forms.items()
        }


@contextmanager
def made(service: Service, *, count: int = 1, **changes: Any) -> Iterator[Any]:
    """A running instance (a list of them when `count` is over 1) that is gone afterwards."""
    if count > 1:
        changes["instance_num"] = count
    answer = service.http("POST", "/v2/{p}/instances", json=body_for(service, **changes))
    assert answer.status_code == 200, answer.text
    caches = [Cache(service, found["instance_id"]) for found in answer.json()["instances"]]
    assert len(caches) == count
    with ExitStack() as afterwards:
        afterwards.push(partial(_clean_up, caches))
        for cache in caches:
            cache.until_running()
        yield caches if count > 1 else caches[0]


def _clean_up(
    caches: list[Cache],
    _kind: type[BaseException] | None,
    failure: BaseException | None,
    _traceback: TracebackType | None,
) -> None:
    """Remove them. Where the test has failed and left no service that could, its failure is what counts."""
    try:
        remove(*caches)
    except (httpx.TransportError, AssertionError) as error:
        if failure is None:
            raise
        failure.add_note(f"and its instances were not removed: {error!r}")


def remove(*caches: Cache) -> None:
    """Delete instances in whatever state they are, and wait until they are gone."""
    for cache in caches:

        def taken(cache: Cache = cache) -> bool:
            answer = cache.http("DELETE")
            assert answer.status_code in (204, 400, 404), answer.text
            return answer.status_code != 400

        until(taken, seconds=SECONDS, what=f"{cache.id} to be at rest, for its deletion")
    for cache in caches:
        cache.until_gone()


@contextmanager
def refused(status: int, code: str, *named: str) -> Iterator[None]:
    """The SDK raises this refusal, whose message has these words."""
    try:
        yield
    except ClientRequestException as exception:
        told = (exception.status_code, exception.error_code)
        wrong = [word for word in named if word not in exception.error_msg]
        message = exception.error_msg
    else:
        raise AssertionError(f"not refused; {status} {code} is due")
    assert told == (status, code), message
    assert not wrong, f"{message} does not name {wrong}"
