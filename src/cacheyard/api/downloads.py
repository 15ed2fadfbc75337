"""Where links of the API lead that need no token, as they are signed: certificates (`services.encryption`).

Mounted by the application, outside the request handlers.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from cacheyard.api import refusals
from cacheyard.errors import BadLink
from cacheyard.services.call import House
from cacheyard.services.encryption import BUNDLES, bundle


def routes(house: House) -> list[BaseRoute]:
    """The routes."""

    async def certificate(request: Request) -> Response:
        instance_id, query = request.path_params["instance_id"], request.query_params
        signed = (query.get("Expires", ""), query.get("Signature", ""))
        found = await house.store.run(bundle, house, instance_id, *signed)
        if found is None:
            refusal = BadLink()
            return JSONResponse(refusals.body(refusal, "v2"), refusal.status)
        name = f'attachment; filename="ca-{instance_id}.zip"'
        return Response(found, media_type="application/zip", headers={"Content-Disposition": name})

    return [Route(f"{BUNDLES}/{{instance_id}}", certificate)]
