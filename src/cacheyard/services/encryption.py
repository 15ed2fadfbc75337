"""Chapters 5.11.1 to 5.11.3: TLS between clients and an instance, which the API calls SSL."""

import hmac
import zipfile
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    DownloadSslCertResponse,
    ShowInstanceSslDetailResponse,
    UpdateSSLSwitchRequestBody,
    UpdateSslSwitchResponse,
)
from cacheyard.domain.engines import Engine, version_of
from cacheyard.domain.instances import Instance, proxied
from cacheyard.domain.nodes import Run
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, House
from cacheyard.services.names import names_of
from cacheyard.store import hosts, instances, nodes, proxies, shards, tasks
from cacheyard.store.certificates import FILE, authority_certificate

VERSIONS = ("6.0", "7.0")  # with which it is sold
SWITCHED_SINCE = (7, 0, 0)  # servers that take it without a restart
BUNDLES = "/certificates"  # where links lead
LINK_SECONDS = 600  # how long one is good
_PURPOSE = "certificate link"


def update_ssl_switch(call: Call[UpdateSSLSwitchRequestBody]) -> Begun[UpdateSslSwitchResponse]:
    """5.11.1: on or off, while the servers run. What is so already is made so once more."""
    if call.body.enabled is None:
        raise errors.Invalid("DCS.4202", parameter="enabled", why="it must be true or false")
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        _check(tx, instance)
        if call.body.enabled and instance.no_password:
            raise errors.PasswordFree
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.RECONFIGURE,
            name="UpdateSsl",
            status=Status.RESTARTING,
            arguments={"undo": {"ssl": instance.ssl}},
            details={"enable_ssl": call.body.enabled},
        )
        shards.watch(tx, instance.id, False)  # its Sentinels are others from now on
        instances.change(tx, instance.id, ssl=call.body.enabled)
    call.house.start_task(task_id)
    answer = UpdateSslSwitchResponse(
        job_id=task_id, jobId=task_id, instance_id=instance.id, instanceId=instance.id, result="success"
    )
    return Begun(answer, task_id)


def show_instance_ssl_detail(call: Call[None]) -> ShowInstanceSslDetailResponse:
    """5.11.2: whether clients must speak TLS, where, and until when the certificates are valid that they see:
    the first of all to end."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        _check(tx, instance)
        enabled = _in_force(tx, instance)
        ends = _ends(tx, instance)
    if not enabled:
        return ShowInstanceSslDetailResponse(enabled=False)
    name = names_of(call.house, instance).get("domain_name")
    return ShowInstanceSslDetailResponse(
        enabled=True,
        ip=instance.ip,
        port=str(instance.port),
        domain_name=f"{name}:{instance.port}" if name else None,
        ssl_expired_at=iso(min(ends, default=None)),
        ssl_validated=bool(ends) and min(ends) > now_ms(),
    )


def download_ssl_cert(call: Call[None]) -> DownloadSslCertResponse:
    """5.11.3: a link to the certificate of the authority that clients must trust, good for some minutes."""
    with call.house.store.read() as tx:
        instance = call.instance(tx)
        _check(tx, instance)
    expires = now_ms() // 1000 + LINK_SECONDS
    signature = _signature(call.house, instance.id, expires)
    link = f"{call.base_url}{BUNDLES}/{instance.id}?Expires={expires}&Signature={signature}"
    return DownloadSslCertResponse(file_name=f"ca-{instance.id}.zip", link=link, bucket_name="cacheyard")


def bundle(house: House, instance_id: str, expires: str, signature: str) -> bytes | None:
    """The zip file that a link leads to; None when it is not one of ours, or is too old."""
    if not (expires.isascii() and expires.isdigit()) or int(expires) * 1000 < now_ms():
        return None
    if not hmac.compare_digest(_signature(house, instance_id, int(expires)).encode(), signature.encode()):
        return None
    with house.store.read() as tx:
        certificate = authority_certificate(tx)
    if certificate is None:
        return None
    made = BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(FILE, certificate)
    return made.getvalue()


def able(engines: Iterable[Engine]) -> list[Engine]:
    """The servers that can speak TLS, and take it and new certificates while they run."""
    return [engine for engine in engines if engine.tls and engine.version >= SWITCHED_SINCE]


def sold(engine_version: str) -> bool:
    """Whether instances of that version can have it."""
    return engine_version in VERSIONS


def _signature(house: House, instance_id: str, expires: int) -> str:
    return house.sealer.sign(_PURPOSE, f"{instance_id} {expires}")


def _check(tx: Connection, instance: Instance) -> None:
    """Refuse what cannot have it."""
    if not sold(instance.engine_version):
        raise errors.NoSsl(why=f"it is there for {' and '.join(VERSIONS)}, not {instance.engine_version}")
    if proxied(instance):
        return
    can = {engine.binary for host in hosts.every(tx) for engine in able(host.engines)}
    version = version_of(instance.internal_version)
    if version < SWITCHED_SINCE or not {node.binary for node in nodes.of_instance(tx, instance.id)} <= can:
        raise errors.NoSsl(why=f"its server, {instance.internal_version}, cannot be switched to TLS")


def _in_force(tx: Connection, instance: Instance) -> bool:
    """What the row says, unless a task is still about to make it so."""
    task = tasks.get(tx, instance.task_id) if instance.task_id is not None else None
    before: dict[str, Any] = {} if task is None else task.arguments.get("undo") or {}
    return bool(before.get("ssl", instance.ssl))


def _ends(tx: Connection, instance: Instance) -> list[int]:
    if proxied(instance):
        seen = [proxy.seen_expires for proxy in proxies.of_instance(tx, instance.id)]
    else:
        there = nodes.of_instance(tx, instance.id)
        seen = [node.seen_expires for node in there if node.run is Run.UP]
    return [end for end in seen if end is not None]
