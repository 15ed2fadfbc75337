"""Instances get the newest patch of their version that is installed, and their proxies the installed program
([newer]). See docs/switchover.md."""

from typing import Any

from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import UpgradeInstanceMinorVersionResponse, UpgradeMinorVersionRequestBody
from cacheyard.domain.engines import Engine, newer_patch, version_of
from cacheyard.domain.instances import Instance, encrypted_servers, proxied
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import encryption, work
from cacheyard.services.call import Begun, Call
from cacheyard.services.proxies import Replacements, replacements, versions
from cacheyard.store import hosts, nodes

LATEST = "latest"


def upgrade_instance_minor_version(
    call: Call[UpgradeMinorVersionRequestBody],
) -> Begun[UpgradeInstanceMinorVersionResponse]:
    """`latest`, or a version as show_instance_version has it. What is the latest already is a task that ends
    at once; clients send what they want for proxies too, if there are any or not."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        wanted, wanted_proxy = call.body.engine_minor_version, call.body.proxy_minor_version
        if not wanted and not (wanted_proxy and proxied(instance)):
            raise errors.Invalid(parameter="engine_minor_version", why=f"it must be {LATEST} or a version")
        found = [one for host in hosts.every(tx) for one in host.engines]
        if encrypted_servers(instance):
            found = encryption.able(found)
        engine = _engine(found, instance, wanted) if wanted else None
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.UPGRADE,
            name="UpgradeMinorVersion",
            status=Status.RUNNING,
            arguments=_arguments(
                engine,
                instance,
                incarnations=work.next_incarnations(tx, instance.id),
                binaries={node.id: node.binary for node in nodes.of_instance(tx, instance.id)},
            )
            | {"proxies": _proxies(tx, instance, wanted_proxy)},
        )
    call.house.start_task(task_id)
    return Begun(UpgradeInstanceMinorVersionResponse(task_id=task_id), task_id)


def _engine(found: list[Engine], instance: Instance, wanted: str) -> Engine | None:
    """The server that is asked for; None: the newest one there is runs already."""
    if wanted == LATEST:
        return newer_patch(found, instance.internal_version)
    if wanted == instance.internal_version:
        raise errors.SameVersion(version=wanted)
    line = version_of(instance.internal_version)
    exact = [one for one in found if one.version_text == wanted and one.version[:2] == line[:2]]
    engine = newer_patch(exact, instance.internal_version)
    if engine is None:
        raise errors.Invalid(
            parameter="engine_minor_version",
            why=f"no installed server is {wanted} and a newer patch of {instance.internal_version}",
        )
    return engine


def _proxies(tx: Connection, instance: Instance, wanted: str | None) -> Replacements:
    """New proxies of the version asked for, in the places of those that are of another."""
    if not wanted or not proxied(instance):
        return {}
    there = versions(tx, instance)
    if wanted != LATEST:
        if wanted == there.running and not there.old:
            raise errors.SameVersion(version=wanted)
        if wanted != there.installed:
            raise errors.Invalid(
                parameter="proxy_minor_version", why=f"{there.installed} is installed, and no other"
            )
    return replacements(hosts.every(tx), ((proxy, proxy.az_code) for proxy in there.old))


def _arguments(
    engine: Engine | None, instance: Instance, *, incarnations: dict[str, int], binaries: dict[str, str]
) -> dict[str, Any]:
    if engine is None:
        return {"binary": "", "version": instance.internal_version, "incarnations": {}, "undo": {}}
    return {
        "binary": engine.binary,
        "version": engine.version_text,
        "incarnations": incarnations,
        "undo": binaries,
    }
