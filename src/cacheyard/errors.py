"""What a request can be refused for, as classes by what the caller should do.

Raised by `services` and `api`; only `api` turns them into HTTP. The docstring of a class is its
message (`{name}` fields are filled from the keyword arguments), its `code` the documented one of
the v2 API; v1 codes are derived from it (`api.errors`).
"""

from typing import ClassVar


class Refused(Exception):  # noqa: N818 - read as "the request was refused"
    """Invalid request."""

    code: str = "DCS.4800"
    status: ClassVar[int] = 400

    def __init__(self, **facts: object) -> None:
        self.facts = facts
        template = type(self).__doc__ or ""
        super().__init__(" ".join(template.split()).format(**facts))


# --- Correct the request -----------------------------------------------------------------------


class Invalid(Refused):
    """Invalid {parameter} in the request: {why}."""

    code = "DCS.4800"

    def __init__(self, code: str | None = None, **facts: object) -> None:
        """`code`: the documented one of this parameter, where the contract names one."""
        super().__init__(**facts)
        if code is not None:
            self.code = code


class EmptyBody(Refused):
    """Empty request body."""

    code = "DCS.4004"


class NotJson(Refused):
    """The message body contains invalid characters or is not in JSON format."""

    code = "DCS.4005"


# --- Wait and send it again ---------------------------------------------------------------------


class Busy(Refused):
    """This operation is not allowed when the DCS instance is in the current state ({status})."""

    code = "DCS.4026"


# --- Show who you are ---------------------------------------------------------------------------


class Unauthenticated(Refused):
    """Invalid token: {why}."""

    code = "DCS.1001"
    status = 401


# --- Ask for the right --------------------------------------------------------------------------


class Forbidden(Refused):
    """Policy does not allow {action} to be performed."""

    code = "DCS.2007"
    status = 403


# --- It is not there ----------------------------------------------------------------------------


class NotFound(Refused):
    """The requested URL does not exist."""

    code = "DCS.4001"
    status = 404


class MethodNotAllowed(Refused):
    """This request method is not allowed."""

    code = "DCS.5001"
    status = 405


# --- Do without it ------------------------------------------------------------------------------


class NotBuilt(Refused):
    """{what} is in the contract but not built yet; `cacheyard coverage` lists what is."""

    code = "DCS.5501"
    status = 501


# --- Look at the log ----------------------------------------------------------------------------


class Failed(Refused):
    """Internal service error; request {request_id} in the log says more."""

    code = "DCS.5000"
    status = 500
