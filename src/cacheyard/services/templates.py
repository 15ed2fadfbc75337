"""Chapter 5.14: parameter templates, with which instances can be created."""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection

from cacheyard import errors
from cacheyard.clock import iso, now_ms
from cacheyard.contract.types import (
    ConfigParam,
    ConfigTemplatesListInfo,
    CreateCustomTemplateBody,
    CreateCustomTemplateResponse,
    DeleteConfigTemplateResponse,
    ListConfigTemplatesResponse,
    ShowConfigTemplateResponse,
    UpdateConfigTemplateResponse,
    UpdateCustomTemplateBody,
)
from cacheyard.domain.flavors import Flavor
from cacheyard.domain.parameters import absence, find
from cacheyard.domain.templates import (
    CUSTOM,
    ENGINE,
    PRODUCT,
    STORAGE,
    SYSTEM,
    Template,
    system_template,
    system_templates,
)
from cacheyard.ids import new_id
from cacheyard.services.call import Call
from cacheyard.store import templates

PAGE = 10
_DONE = "success"


def list_config_templates(call: Call[None]) -> ListConfigTemplatesResponse:
    """5.14.1: the service's templates, then the project's in the order in which they were made."""
    given = call.parameters
    with call.house.store.read() as tx:
        there = [*system_templates(), *templates.of_project(tx, call.project_id)]
    found = [one for one in there if _fits(one, given)]
    begin, limit = given.get("offset") or 0, given.get("limit") or PAGE
    return ListConfigTemplatesResponse(
        template_num=len(found),
        templates=[ConfigTemplatesListInfo(**_shown(one)) for one in found[begin : begin + limit]],
    )


def show_config_template(call: Call[None]) -> ShowConfigTemplateResponse:
    """5.14.3: one template, with all parameters."""
    with call.house.store.read() as tx:
        template = _template(tx, call, str(call.parameters["template_id"]), call.parameters.get("type"))
    return ShowConfigTemplateResponse(
        **_shown(template),
        params=[
            ConfigParam(
                param_id=one.id,
                param_name=one.name,
                param_value=template.params.get(one.name, one.default),
                default_value=one.default,
                value_range=one.value_range,
                value_type=one.type,
                description=one.description,
                need_restart=one.need_restart,
            )
            for one in template.catalog
        ],
    )


def create_custom_template(call: Call[CreateCustomTemplateBody]) -> CreateCustomTemplateResponse:
    """5.14.2: a template made of another one, by choosing other values for some parameters."""
    body, limit = call.body, call.house.settings.template_quota
    with call.house.store.write() as tx:
        source = _template(tx, call, str(body.template_id), body.type)
        _check_like(source, body)
        if len(templates.of_project(tx, call.project_id)) >= limit:
            raise errors.TooManyTemplates(limit=limit)
        made = replace(
            source,
            id=new_id(),
            project_id=call.project_id,
            name=_free_name(tx, call, str(body.name)),
            description=body.description or "",
            params=source.params | _checked(source, body.params or {}),
            created_at=now_ms(),
        )
        templates.add(tx, made)
    return CreateCustomTemplateResponse(id=made.id)


def update_config_template(call: Call[UpdateCustomTemplateBody | None]) -> UpdateConfigTemplateResponse:
    """5.14.4: another name, description or values; what is not sent stays as it is."""
    body = call.body or UpdateCustomTemplateBody()
    values: dict[str, Any] = {}
    with call.house.store.write() as tx:
        template = _custom(tx, call)
        if body.name is not None and body.name != template.name:
            values["name"] = _free_name(tx, call, body.name)
        if body.description is not None:
            values["description"] = body.description
        if body.params:
            values["params"] = template.params | _checked(template, body.params)
        if values:
            templates.change(tx, template.id, **values)
    return UpdateConfigTemplateResponse(result=_DONE)


def delete_config_template(call: Call[None]) -> DeleteConfigTemplateResponse:
    """5.14.5: instances that were created with it keep their parameters."""
    with call.house.store.write() as tx:
        templates.remove(tx, _custom(tx, call).id)
    return DeleteConfigTemplateResponse(result=_DONE)


def chosen(tx: Connection, call: Call[Any], flavor: Flavor) -> dict[str, Any]:
    """The columns of an instance that its template decides, by the request that creates it."""
    template_id = call.body.template_id
    if not template_id:
        return {"template_id": None, "parameters": {}}
    template = _template(tx, call, template_id)
    meant = template.engine_version, template.cache_mode
    if meant != (call.body.engine_version, flavor.cache_mode):
        why = f"{template.name} is for version {meant[0]} and type {meant[1]}"
        raise errors.Invalid(parameter="template_id", why=why)
    return {"template_id": template.id, "parameters": template.params}


def _template(tx: Connection, call: Call[Any], template_id: str, kind: str | None = None) -> Template:
    """The service's or the project's with that id, and of that type if one is said."""
    found = system_template(template_id) or templates.get(tx, call.project_id, template_id)
    if found is None or kind not in (None, found.type):
        raise errors.NoSuchTemplate(template_id=template_id)
    return found


def _custom(tx: Connection, call: Call[Any]) -> Template:
    """The template of the path, which must be the project's own."""
    found = _template(tx, call, str(call.parameters["template_id"]))
    if found.type == SYSTEM:
        raise errors.Invalid(parameter="template_id", why=f"{found.name} is the service's own, and stays")
    return found


def _free_name(tx: Connection, call: Call[Any], name: str) -> str:
    there = [*system_templates(), *templates.of_project(tx, call.project_id)]
    if any(one.name == name for one in there):
        raise errors.Invalid(parameter="name", why=f"there is a template {name} already")
    return name


def _check_like(source: Template, body: CreateCustomTemplateBody) -> None:
    """What the request says of the new template must be true of the one that it is made of."""
    if body.engine not in (None, ENGINE):
        raise errors.BadEngine(why=f"{source.name} is for {ENGINE}")
    if body.engine_version not in (None, source.engine_version):
        raise errors.BadVersion(why=f"{source.name} is for {source.engine_version}")
    if body.cache_mode not in (None, source.cache_mode):
        raise errors.Invalid(parameter="cache_mode", why=f"{source.name} is for {source.cache_mode}")


def _checked(template: Template, asked: Mapping[str, str]) -> dict[str, str]:
    """Values as they are kept; refuses what the version and type of the template do not have."""
    kept = {}
    for name, value in asked.items():
        parameter = find(name, template.engine_version, template.cache_mode)
        if parameter is None:
            why = absence(name, template.engine_version, template.cache_mode)
            raise errors.Invalid(parameter=f"params.{name}", why=why)
        if (fault := parameter.fault(value)) is not None:
            raise errors.BadParameterValue(name=name, why=f"{fault}, and {value!r} is not")
        kept[name] = parameter.kept(value)
    return kept


def _fits(template: Template, given: Mapping[str, Any]) -> bool:
    """Whether a list that is filtered so has it. Name and description may be given in part."""
    exact = {
        "template_id": template.id,
        "type": template.type,
        "engine": ENGINE,
        "engine_version": template.engine_version,
        "cache_mode": template.cache_mode,
    }
    parts = {"name": template.name, "description": template.description or ""}
    return all(given.get(key) in (None, value) for key, value in exact.items()) and all(
        (given.get(key) or "").lower() in value.lower() for key, value in parts.items()
    )


def _shown(template: Template) -> dict[str, Any]:
    return {
        "template_id": template.id,
        "cache_mode": template.cache_mode,
        "description": template.description,
        "engine": ENGINE,
        "engine_version": template.engine_version,
        "name": template.name,
        "product_type": PRODUCT,
        "storage_type": STORAGE,
        "type": template.type,
        "created_at": iso(template.created_at) if template.type == CUSTOM else None,
    }
