"""A refusal as HTTP: the one place that knows how each family of the API writes an error."""

from http import HTTPStatus
from typing import Any

from cacheyard.contract.model import Family
from cacheyard.errors import Refused


def body(refused: Refused, family: Family) -> dict[str, Any]:
    """What clients of the family parse. v2 is flat with a string code; v1 nests, with its own codes."""
    text = str(refused)
    match family:
        case "v2":
            return {"error_code": refused.code, "error_msg": text, "error_ext_msg": None}
        case "v1":
            return {"error": {"code": v1_code(refused), "message": text, "ext_message": None}}
        case "iam":
            title = HTTPStatus(refused.status).phrase
            return {"error": {"code": refused.status, "message": text, "title": title}}
        case "vpc" | "ecs":
            return {"code": refused.code, "message": text}


def v1_code(refused: Refused) -> str:
    """DCS.4010 with 400 is 111400010 in v1, DCS.1001 with 401 is 111401001: 111, the status, three digits."""
    return f"111{refused.status}{refused.code[-3:]}"


def family_of(path: str) -> Family:
    """The family of a path that fits no operation."""
    if path.startswith("/v1.0/"):
        return "v1"
    if path in ("/", "/v3", "/v3/") or path.startswith(("/v3/auth/", "/v3/projects")):
        return "iam"
    if path.startswith(("/v1/", "/v2.0/", "/v3/")):
        return "vpc"
    if path.startswith("/v2.1/"):
        return "ecs"
    return "v2"
