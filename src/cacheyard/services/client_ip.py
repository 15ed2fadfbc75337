"""Chapter 5.2.8, client IP pass-through: whether sessions, slow logs, MONITOR tell from where clients come.

Behind proxies that is a matter of what proxies say, and can be switched. Elsewhere clients talk to servers
themselves, whose sessions cannot but have their addresses: there it is on, and cannot be switched off.
"""

from cacheyard import errors
from cacheyard.contract.types import (
    UpdateClientIpTransparentTransmissionRequestBody,
    UpdateClientIpTransparentTransmissionResponse,
)
from cacheyard.domain.instances import Instance, proxied
from cacheyard.domain.statuses import Status
from cacheyard.domain.tasks import Change
from cacheyard.services import work
from cacheyard.services.call import Begun, Call, busy
from cacheyard.store import instances


def update_client_ip_transparent_transmission(
    call: Call[UpdateClientIpTransparentTransmissionRequestBody],
) -> Begun[UpdateClientIpTransparentTransmissionResponse]:
    """5.2.8: the sessions that are open are shown the other way too."""
    wanted = call.body.transparent_client_ip_enable
    if wanted is None:
        raise errors.Invalid(parameter="transparent_client_ip_enable", why="it must be true or false")
    with call.house.store.write() as tx:
        instance = call.instance(tx)
        if instance.task_id is not None:  # which may change it, or the type
            raise busy(instance)
        if not wanted and not can_hide(instance):
            raise errors.NoPassThrough(
                why=f"clients of the type {instance.cache_mode} talk to servers, who see from where"
            )
        if wanted is passes(instance):
            raise errors.PassesThrough if wanted else errors.PassesNothing
        task_id = work.begin(
            tx,
            call.who,
            instance,
            Change.RECONFIGURE,
            name="UpdateClientIpTransparentTransmission",
            status=Status.RUNNING,
            arguments={"undo": {"client_ip": instance.client_ip}},
        )
        instances.change(tx, instance.id, client_ip=wanted)
    call.house.start_task(task_id)
    return Begun(UpdateClientIpTransparentTransmissionResponse(job_id=task_id), task_id, wait=True)


def passes(instance: Instance) -> bool:
    """Whether it is told from where clients come."""
    return instance.client_ip or not can_hide(instance)


def can_hide(instance: Instance) -> bool:
    """Whether that can be switched."""
    return proxied(instance)
