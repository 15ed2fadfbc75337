"""Where everything is: the service catalog, version discovery, and a user's projects and domains.

Called by `api` and by `services.tokens`. Addresses are built from the one that the client itself
used, so that they hold behind any name or port that leads here.
"""

import uuid
from collections.abc import Mapping
from typing import Any

from cacheyard.domain.identity import Principal, Project
from cacheyard.store import identity as rows
from cacheyard.store.db import Store

# Type to path. Clients put their own version and project behind `network`; openstacksdk's DCS
# extension wants the version as the first element of the path; `dcsv1` is what the Go clients ask for.
_SERVICES = {
    "identity": "/v3",
    "iam": "/v3",
    "dcs": "/v1.0/{project}",
    "dcsv1": "/v1.0/{project}",
    "dcsv2": "/v2/{project}",
    "vpc": "/v1/{project}",
    "vpcv3": "/v3/{project}",
    "network": "",
    "ecs": "/v1/{project}",
    "compute": "/v2.1/{project}",
}
_IDS = uuid.UUID("a3a8a6a6-5a2f-4a55-8a43-8f0c7cbb9d5e")  # drawn once; ids follow from names


def catalog(base_url: str, region: str, project_id: str | None) -> list[dict[str, Any]]:
    """The catalog of a token; without a project, only what needs none."""
    base = base_url.rstrip("/")
    entries = []
    for kind, path in _SERVICES.items():
        if project_id is None and "{project}" in path:
            continue
        endpoint = {
            "id": uuid.uuid5(_IDS, f"{region}/{kind}").hex,
            "interface": "public",
            "region": region,
            "region_id": region,
            "url": base + path.format(project=project_id),
        }
        entries.append(
            {"id": uuid.uuid5(_IDS, kind).hex, "name": kind, "type": kind, "endpoints": [endpoint]}
        )
    return entries


def show_catalog(
    store: Store, principal: Principal, *, base_url: str, region: str, project_id: str | None = None
) -> dict[str, Any]:
    """Answer `GET /v3/auth/catalog`. A signed request names its project in X-Project-Id or not at all:
    then the user's first one stands in."""
    chosen = principal.project_id or project_id
    if chosen is None:
        with store.read() as tx:
            mine = rows.projects_of(tx, principal.user_id)
        named = next((project for project in mine if project.name == region), None)
        chosen = named.id if named else mine[0].id if mine else None
    return {"catalog": catalog(base_url, region, chosen), "links": _links(base_url, "/v3/auth/catalog")}


def versions(base_url: str) -> dict[str, Any]:
    """Answer `GET /`: the identity API's version, and the network API's, whose endpoint is the root too."""
    network = {
        "id": "v2.0",
        "status": "CURRENT",
        "updated": "2016-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": base_url.rstrip("/") + "/v2.0/"}],
        "media-types": [],
    }
    return {"versions": {"values": [_v3(base_url), network]}}


def version(base_url: str) -> dict[str, Any]:
    """Answer `GET /v3`."""
    return {"version": _v3(base_url)}


def list_projects(
    store: Store, principal: Principal, query: Mapping[str, Any], *, base_url: str
) -> dict[str, Any]:
    """Answer `GET /v3/projects`: the user's own, filtered. Of a region's name there is exactly one."""
    with store.read() as tx:
        mine = rows.projects_of(tx, principal.user_id)
    if str(query.get("enabled", True)).lower() in ("false", "0"):
        mine = []  # a disabled project is nobody's
    name, domain, parent = (query.get(key) for key in ("name", "domain_id", "parent_id"))
    found = [
        project
        for project in mine
        if name in (None, "", project.name)
        and domain in (None, "", project.domain_id)
        and parent in (None, "", project.domain_id)
    ]
    if size := query.get("per_page"):
        found = found[((query.get("page") or 1) - 1) * size :][:size]
    return _projects(found, base_url, "/v3/projects")


def show_project(
    store: Store, principal: Principal, project_id: str, *, base_url: str
) -> dict[str, Any] | None:
    """Answer `GET /v3/projects/{project_id}`; None for one on which the user has no role."""
    with store.read() as tx:
        mine = rows.projects_of(tx, principal.user_id)
    found = next((project for project in mine if project.id == project_id), None)
    return {"project": _project(found, base_url)} if found else None


def auth_projects(store: Store, principal: Principal, *, base_url: str) -> dict[str, Any]:
    """Answer `GET /v3/auth/projects`: what the user may have a token for."""
    with store.read() as tx:
        mine = rows.projects_of(tx, principal.user_id)
    return _projects(mine, base_url, "/v3/auth/projects")


def auth_domains(principal: Principal, query: Mapping[str, str], *, base_url: str) -> dict[str, Any]:
    """Answer `GET /v3/auth/domains`: the one that the user belongs to."""
    mine = {
        "id": principal.domain_id,
        "name": principal.domain_name,
        "description": "",
        "enabled": True,
        "links": {"self": f"{base_url.rstrip('/')}/v3/domains/{principal.domain_id}"},
    }
    found = [mine] if query.get("name") in (None, "", principal.domain_name) else []
    return {"domains": found, "links": _links(base_url, "/v3/auth/domains")}


def _projects(found: list[Project], base_url: str, path: str) -> dict[str, Any]:
    return {"projects": [_project(p, base_url) for p in found], "links": _links(base_url, path)}


def _project(project: Project, base_url: str) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "description": project.description,
        "domain_id": project.domain_id,
        "parent_id": project.domain_id,
        "enabled": project.enabled,
        "is_domain": False,
        "links": {"self": f"{base_url.rstrip('/')}/v3/projects/{project.id}"},
    }


def _links(base_url: str, path: str) -> dict[str, Any]:
    return {"self": base_url.rstrip("/") + path, "next": None, "previous": None}


def _v3(base_url: str) -> dict[str, Any]:
    return {
        "id": "v3.6",
        "status": "stable",
        "updated": "2016-04-04T00:00:00Z",
        "links": [{"rel": "self", "href": base_url.rstrip("/") + "/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }
