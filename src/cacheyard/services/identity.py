"""Who sent a request: from a token or from a signature to a `Principal`.

Called by `api` for each request, before anything else is looked at. The messages say what is wrong
with a token, a clock or a signature, and never whether a user exists.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from cacheyard.domain import signature
from cacheyard.domain.identity import Principal
from cacheyard.domain.passwords import sha256_hex
from cacheyard.domain.signature import Fault, Request
from cacheyard.errors import (
    BadSignature,
    ClockSkew,
    NoToken,
    Replayed,
    TokenExpired,
    Unauthenticated,
    WrongProject,
)
from cacheyard.store import identity as rows
from cacheyard.store.db import Store
from cacheyard.store.secrets import Sealer

# X-Sdk-Date counts whole seconds: a client that polls twice in one second sends the same signed GET
# twice. Whatever changes something never has a second chance.
AGAIN_MS = 2_000
READS_KEPT = 100_000  # signatures of reads in memory; an hour of a client that polls every 36 ms
PRUNE_EVERY_MS = 60_000
KEPT_MS = 2 * signature.WINDOW_MS  # dated 15 minutes ahead, a signature is good for 30 from its first sight


class Signatures:
    """Which signatures have been seen. One in a process; `api` makes it and passes it along."""

    def __init__(self, store: Store) -> None:
        """Those of changes are in the store, so that a restart forgets none; those of reads in memory."""
        self._store = store
        self._reads: OrderedDict[str, int] = OrderedDict()
        self._changes: OrderedDict[str, tuple[str, int]] = OrderedDict()  # connection and time of first sight
        self._pruned = 0
        self._lock = threading.Lock()

    def see(self, digest: str, *, reads: bool, connection: str, now: int) -> None:
        """Remember a signature that was right. Raises `Replayed` when it may not be used again.

        Clients date by the second, so two equal requests of one second have one signature. A read may
        repeat it; a change only on the `connection` on which it came first, where nobody else can be.
        """
        if not (self._see_read(digest, now) if reads else self._see_change(digest, connection, now)):
            raise Replayed

    def _see_read(self, digest: str, now: int) -> bool:
        with self._lock:
            while self._reads:
                oldest, seen = next(iter(self._reads.items()))
                if seen > now - KEPT_MS and len(self._reads) < READS_KEPT:
                    break
                del self._reads[oldest]
            return now - self._reads.setdefault(digest, now) <= AGAIN_MS

    def _see_change(self, digest: str, connection: str, now: int) -> bool:
        with self._lock:
            while self._changes and next(iter(self._changes.values()))[1] < now - AGAIN_MS:
                self._changes.popitem(last=False)
            if connection and self._changes.get(digest, ("", 0))[0] == connection:
                return True
            prune = now - self._pruned >= PRUNE_EVERY_MS
            if prune:
                self._pruned = now
        with self._store.note() as tx:
            if prune:
                rows.forget_signatures(tx, now - KEPT_MS)
            first = rows.first_sight(tx, digest, now)
        if first:
            with self._lock:
                self._changes[digest] = (connection, now)
        return first


def authenticate_token(store: Store, token: str | None, *, now: int) -> Principal:
    """The user of a token, on the token's project."""
    if not token:
        raise NoToken
    with store.read() as tx:
        found = rows.sessions(tx, sha256_hex(token))
    if not found:
        raise Unauthenticated(why="it was never issued here, or it has been revoked")
    first = found[0]
    known = {"user_id": first.user_id, "user_name": first.user_name}  # for the audit log
    if first.expires_at <= now:
        raise TokenExpired(**known)
    roles = tuple(dict.fromkeys(session.role for session in found if session.role is not None))
    if first.project_id is not None and not roles:
        raise Unauthenticated(why="its user has no role on its project any more", **known)
    return Principal(
        user_id=first.user_id,
        user_name=first.user_name,
        domain_id=first.domain_id,
        domain_name=first.domain_name,
        project_id=first.project_id,
        project_name=first.project_name,
        roles=roles,
        policies=tuple(session.policy for session in found if session.policy is not None),
    )


def authenticate_signature(
    store: Store, sealer: Sealer, seen: Signatures, request: Request, *, connection: str = "", now: int
) -> Principal:
    """The user of a signed request, on no project yet: `for_project` takes the one of the path.

    `connection` tells the request's connection from others; empty: unknown, so no change is repeated.
    """
    try:
        authorization = signature.parse(request.headers.get("authorization", ""))
        signed = signature.signed_at(request)
        if abs(now - signed) > signature.WINDOW_MS:
            raise ClockSkew(signed=signature.show_date(signed), now=signature.show_date(now))
        with store.read() as tx:
            found = rows.live_key(tx, authorization.access)
        if found is None:
            raise BadSignature(why="the access key is unknown or disabled")
        user, sealed = found
        if not signature.fits(request, authorization, sealer.open(sealed)):
            why = "it does not fit the request; check the secret key and what is signed"
            raise BadSignature(why=why, user_id=user.id, user_name=user.name)
    except Fault as fault:
        raise BadSignature(why=str(fault)) from None
    digest = sha256_hex(authorization.signature)
    seen.see(digest, reads=request.reads, connection=connection, now=now)
    return Principal(
        user_id=user.id,
        user_name=user.name,
        domain_id=user.domain_id,
        domain_name=user.domain_name,
        may_choose=True,
    )


def for_project(store: Store, principal: Principal, project_id: str) -> Principal:
    """The principal on the project that a request names. Raises `WrongProject` when it may not be there."""
    if principal.project_id == project_id:
        return principal
    if not principal.may_choose:
        raise WrongProject
    with store.read() as tx:
        project = rows.project(tx, project_id=project_id)
        granted = rows.grants_on(tx, principal.user_id, project_id)
    if project is None or not granted:
        raise WrongProject
    return replace(principal, project_id=project.id, project_name=project.name, **_granted(granted))


def any_role(store: Store, principal: Principal) -> Principal:
    """For operations without a project in their path: the principal with all roles that it has anywhere."""
    if principal.project_id is not None:
        return principal
    with store.read() as tx:
        return replace(principal, **_granted(rows.grants_of(tx, principal.user_id)))


def _granted(grants: Sequence[rows.Grant]) -> dict[str, Any]:
    policies = {grant.role: grant.policy for grant in grants if grant.policy is not None}
    return {
        "roles": tuple(sorted({grant.role for grant in grants})),
        "policies": tuple(policies.values()),
    }
