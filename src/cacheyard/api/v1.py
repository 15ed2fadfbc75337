"""Version 1 of the API, the part about instances: a translation onto version 2's services.

Bound in `api.bindings`. Clients of version 1 name zones by id and a flavor by product id (the spec code and
`-h`), and write `"true"` where version 2 has true; nothing else is decided here. The rest is `api.v1_offers`.
"""

from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from cacheyard import errors
from cacheyard.contract import types as t
from cacheyard.domain import flavors
from cacheyard.domain.network import zone_of
from cacheyard.services import access, change, lifecycle, parameters, power, resize, views
from cacheyard.services.call import Begun, Call

S = TypeVar("S", bound=msgspec.Struct)

PRODUCT = "-h"  # what a product id has behind its spec code: paid by the hour
_OLD_PRODUCTS = {"OTC_DCS_SINGLE": "single", "OTC_DCS_MS": "ha", "OTC_DCS_CL": "cluster"}
"""Products that are a type without a size, which openstackclient still offers; the capacity has the size."""


def v1_create_instance(call: Call[t.CreateInstanceBodyV1]) -> t.CreateInstanceResponseV1:
    """8.1.1: as 5.1.1."""
    body = call.body
    free = None if body.no_password_access is None else is_true(body.no_password_access)
    asked = as_type(
        body,
        t.CreateInstanceBody,
        az_codes=body.available_zones,
        spec_code=_spec_code(body),
        no_password_access=free,
        private_ip=_private_ip(body),
    )
    made = lifecycle.create_instance(replace_body(call, asked))
    instances = [as_type(one, t.InstancesV1) for one in made.instances or []]
    return t.CreateInstanceResponseV1(
        instance_id=instances[0].instance_id, instances=instances, dry_run=made.dry_run
    )


def v1_batch_delete_instances(call: Call[t.BatchDeleteBodyV1 | None]) -> t.BatchDeleteInstancesResponseV1:
    """8.1.3: as 5.1.3."""
    asked = as_type(call.body, t.BatchDeleteBody) if call.body is not None else None
    given = call.parameters | {"all_failure": is_true(call.parameters.get("allFailure"))}
    answer = change.batch_delete_instances(replace(replace_body(call, asked), parameters=given))
    return as_type(answer, t.BatchDeleteInstancesResponseV1)


def v1_list_instances(call: Call[None]) -> t.ListInstancesResponseV1:
    """8.1.5: as 5.1.2. `start` counts from 1; `marker`, the last id of a page, starts behind it."""
    given = call.parameters
    marker = given.get("marker")
    asked = given | {
        "instance_id": given.get("id"),
        "include_failure": is_true(given.get("includeFailure")) or is_true(given.get("include_failure")),
        "name_equal": is_true(given.get("isExactMatchName")) or is_true(given.get("exactMatchName")),
        "offset": 0 if marker else max((given.get("start") or 1) - 1, 0),
    }
    found = views.list_instances(replace(call, parameters=asked))
    region = call.house.region
    return t.ListInstancesResponseV1(
        instance_num=found.instance_num, instances=[_listed(one, region) for one in found.instances or []]
    )


def v1_delete_single_instance(call: Call[None]) -> Begun[None] | None:
    """8.1.2: as 5.1.5."""
    return change.delete_single_instance(call)


def v1_show_instance(call: Call[None]) -> t.ShowInstanceResponseV1:
    """8.1.4: as 5.1.4, with the backup policy alone instead of its record."""
    shown = views.show_instance(call)
    kept = shown.instance_backup_policy
    return as_type(
        shown,
        t.ShowInstanceResponseV1,
        product_id=f"{shown.spec_code}{PRODUCT}",
        is_free="false",
        free="false",
        instance_backup_policy=msgspec.to_builtins(kept.policy) if kept is not None else None,
    )


def v1_update_instance(call: Call[t.ModifyInstanceBodyV1]) -> Begun[None] | None:
    """8.1.6: as 5.1.6, of which version 1 has a part."""
    return change.update_instance(replace_body(call, as_type(call.body, t.ModifyInstanceBody)))


def v1_resize_instance(call: Call[t.ResizeInstanceBodyV1]) -> Begun[None] | t.DryRunResponse:
    """8.1.7: as 5.1.7, by flavor, or by capacity alone."""
    code = (call.body.spec_code or "").removesuffix(PRODUCT)
    return resize.resize_to(call, code, call.body.new_capacity)


def v1_restart_or_flush_instances(call: Call[t.ChangeInstanceStatusBodyV1]) -> None:
    """8.2.1: as 5.2.6, without the results, which clients of version 1 do not read."""
    power.restart_or_flush_instances(replace_body(call, as_type(call.body, t.ChangeInstanceStatusBody)))


def v1_update_password(
    call: Call[t.ModifyInstancePasswordBodyV1],
) -> Begun[t.UpdatePasswordResponseV1] | t.UpdatePasswordResponseV1:
    """8.2.4: as 5.2.3, with a capital Success."""
    asked = as_type(call.body, t.ModifyInstancePasswordBody)
    answer = access.update_password(replace_body(call, asked))
    if isinstance(answer, Begun):
        done = as_type(answer.answer, t.UpdatePasswordResponseV1, result="Success")
        return Begun(done, answer.task_id, answer.wait)
    return as_type(answer, t.UpdatePasswordResponseV1)


def v1_list_configurations(call: Call[None]) -> t.ListConfigurationsResponseV1:
    """8.4.2: as 5.4.1."""
    return as_type(parameters.list_configurations(call), t.ListConfigurationsResponseV1, cluster_v1=False)


def v1_update_configurations(call: Call[t.ModifyRedisConfigBodyV1]) -> Begun[None] | None:
    """8.4.1: as 5.4.2."""
    return parameters.update_configurations(replace_body(call, as_type(call.body, t.ModifyRedisConfigBody)))


# --- Translating ----------------------------------------------------------------------------------


def as_type(given: msgspec.Struct, kind: type[S], **changes: Any) -> S:
    """The object with the same properties as another version's type; those it does not have are left out."""
    return msgspec.convert(msgspec.to_builtins(given) | changes, kind)


def replace_body(call: Call[Any], body: Any) -> Call[Any]:
    """The same request with another body."""
    return replace(call, body=body)


def is_true(value: Any) -> bool:
    """Whether a query says `true`, in any case."""
    return str(value).lower() == "true"


def _spec_code(body: t.CreateInstanceBodyV1) -> str:
    """The flavor asked for, whichever of its names was sent."""
    given = body.spec_code or body.product_id
    if not given:
        raise errors.Invalid(code="DCS.4009", parameter="product_id", why="it or spec_code is required")
    if given in _OLD_PRODUCTS and body.capacity is not None:
        sold = flavors.flavors().values()
        fits = (f for f in sold if f.cache_mode == _OLD_PRODUCTS[given] and _is(f, body.capacity))
        return next((flavor.spec_code for flavor in fits), given)
    return given.removesuffix(PRODUCT)


def _is(flavor: flavors.Flavor, capacity: float) -> bool:
    return round(capacity * 1024) == flavor.capacity_mb


def _private_ip(body: t.CreateInstanceBodyV1) -> str | None:
    several = body.private_ips or []
    if len(several) > 1:
        raise errors.Invalid(parameter="private_ips", why="one address can be chosen, that of the instance")
    return body.private_ip or "".join(several) or None


def _listed(instance: t.InstanceListInfo, region: str) -> t.InstanceV1:
    flavor = flavors.find(instance.spec_code or "")
    zones = [zone.id for code in instance.az_codes or [] if (zone := zone_of(region, code))]
    return as_type(
        instance,
        t.InstanceV1,
        product_id=f"{instance.spec_code}{PRODUCT}",
        resource_spec_code=instance.spec_code,
        cache_mode=flavor.cache_mode if flavor else None,
        available_zones=zones,
        is_free="false",
        free="false",
    )
