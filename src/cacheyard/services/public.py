"""Public access: an instance answers at one of the addresses that the operator has set aside for that."""

from typing import Any

import msgspec
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.contract.types import (
    DeletePublicIpResponse,
    ElbListener,
    PublicIpInfo,
    UpdatePublicIpRequestBody,
    UpdatePublicIpResponse,
)
from cacheyard.domain.instances import Instance
from cacheyard.domain.public import UNFIT, PublicAccess, pool
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call
from cacheyard.services.whitelist import check_filter
from cacheyard.store import fences, instances


def update_public_ip(call: Call[UpdatePublicIpRequestBody]) -> Begun[UpdatePublicIpResponse]:
    """Public access on, or at another address."""
    with call.house.store.write() as tx:
        instance, wanted = call.instance(tx), _chosen(call)
        if instance.cache_mode in UNFIT:
            raise errors.NoPublicAccess(cache_mode=instance.cache_mode)
        if instance.no_password:
            raise errors.PasswordFree
        if call.body.enable_ssl and not instance.ssl:
            raise errors.Invalid(parameter="enable_ssl", why="TLS is switched on for the whole instance")
        if instances.public_at(tx, wanted.address, instance.port) not in (None, instance.id):
            raise errors.Invalid(
                parameter="elb_id",
                why=f"port {instance.port} of {wanted.address} is another instance's; give this one another",
            )
        if fences.of_instance(tx, instance.id) is not None:
            check_filter(tx, instance)
        task_id = _begin(tx, call, instance, wanted, name="BindEip")
    call.house.start_task(task_id)
    return Begun(UpdatePublicIpResponse(job_id=task_id), task_id)


def delete_public_ip(call: Call[None]) -> Begun[DeletePublicIpResponse]:
    """Public access off; who is connected there is cut off."""
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.public_access is None:
            raise errors.Invalid(parameter="instance_id", why="public access is off")
        task_id = _begin(tx, call, instance, None, name="UnBindEip")
    call.house.start_task(task_id)
    return Begun(DeletePublicIpResponse(job_id=task_id), task_id)


def shown(instance: Instance) -> dict[str, Any]:
    """The properties of an instance that are about its public access."""
    found = instance.public_access
    if found is None:
        return {"enable_publicip": False}
    return {"enable_publicip": True, "publicip_id": found.elb_id, "publicip_address": found.address}


def info(instance: Instance) -> PublicIpInfo | None:
    """The same as the answer about one instance tells it."""
    found = instance.public_access
    if found is None:
        return None
    listener = ElbListener(id=instance.id, name=instance.name, port=instance.port)
    return PublicIpInfo(
        elb_id=found.elb_id, eip_id=found.elb_id, eip_address=found.address, elb_listeners=[listener]
    )


def _chosen(call: Call[UpdatePublicIpRequestBody]) -> PublicAccess:
    there = pool(call.house.settings.public_addresses)
    if not there:
        raise errors.CannotFilter(why="the operator has set no public_addresses")
    asked = call.body.elb_id or call.body.publicip_id
    if not asked or asked not in there:
        why = "one is needed" if not asked else f"there is no {asked}"
        raise errors.Invalid(parameter="elb_id", why=f"{why}; it may be {', '.join(there)}")
    return PublicAccess(elb_id=asked, address=there[asked])


def _begin(
    tx: Connection, call: Call[Any], instance: Instance, wanted: PublicAccess | None, *, name: str
) -> str:
    before = instance.public_access
    about = wanted or before
    assert about is not None  # noqa: S101 - it is switched on, or off
    task_id = work.begin(
        tx,
        call.who,
        instance,
        Change.PUBLIC,
        name=name,
        status=Status.RUNNING,
        arguments={"undo": {"public_access": msgspec.to_builtins(before)}},
        details={
            "enable_public_ip": wanted is not None,
            "public_ip_id": about.elb_id,
            "public_ip_address": about.address,
        },
    )
    instances.change(tx, instance.id, public_access=msgspec.to_builtins(wanted))
    return task_id
