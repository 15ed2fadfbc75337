"""Public access: an instance answers at an address of the operator's too, for clients on other machines.

The other machine is a network namespace, so these tests need the right to make one.
"""

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support import clusters, outside
from support.caches import HA, SINGLE, Cache, made, refused
from support.outside import World, needs_filter
from support.proxied import SPLIT, job, needs_program
from support.replicas import nodes
from support.service import Service
from support.waiting import until

ELB, LOST = "front-1", "front-2"
FORMS: dict[str, Any] = {"single": {"spec_code": SINGLE}, "ha": {"spec_code": HA}, "ha_rw_split": SPLIT}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with outside.world() as found:
        yield found


@pytest.fixture(scope="module")
def fronted(world: World) -> Iterator[Service]:
    """A service whose operator has set a public address aside."""
    chosen = f"{ELB}={world.here}, {LOST}=203.0.113.77"
    with Service(CACHEYARD_OVERCOMMIT="100", CACHEYARD_PUBLIC_ADDRESSES=chosen) as service:
        yield service


def bind(client: Any, cache: Cache, elb_id: str = ELB) -> str:
    body = dcs.UpdatePublicIpRequestBody(elb_id=elb_id)
    answer = client.update_public_ip(dcs.UpdatePublicIpRequest(cache.id, body))
    return str(answer.job_id)


def unbind(client: Any, cache: Cache) -> str:
    return str(client.delete_public_ip(dcs.DeletePublicIpRequest(cache.id)).job_id)


@needs_filter
@pytest.mark.parametrize("form", ["single", "ha", pytest.param("ha_rw_split", marks=needs_program)])
def test_an_instance_answers_another_machine_as_far_as_its_whitelist_lets(
    fronted: Service, world: World, form: str
) -> None:
    client = fronted.sdk_token()
    with made(fronted, name=f"public-{form}", **FORMS[form]) as cache:
        assert world.ask(world.here) == "refused"
        assert job(cache, bind(client, cache)) == "SUCCESS"
        assert cache.tasks()[0]["name"] == "BindEip"
        assert world.ask(world.here) == "+PONG"
        shown = cache.show()
        told = shown["publicip_info"]
        assert (shown["enable_publicip"], shown["publicip_address"]) == (True, world.here)
        assert (told["elb_id"], told["eip_address"]) == (ELB, world.here)
        assert [listener["port"] for listener in told["elb_listeners"]] == [6379]

        # the whitelist holds there, and at no other port of the address
        outside.close_to_strangers(cache)
        assert world.ask(world.here) == "refused"
        assert not outside.gets_in(world.here)
        assert outside.gets_in(world.here, source=outside.FRIEND)
        with socket.create_server((world.here, 6380)):
            assert outside.gets_in(world.here, 6380)
        mine = [{"group_name": "world", "ip_list": [world.there]}]
        assert outside.put(cache, enable_whitelist=True, whitelist=mine).status_code == 204
        assert world.ask(world.here) == "+PONG"
        assert not outside.gets_in(world.here)
        assert outside.put(cache, enable_whitelist=False).status_code == 204

        with outside.logged_in(world.here, "127.0.0.1") as link:
            assert job(cache, unbind(client, cache)) == "SUCCESS"
            assert outside.is_cut(link)
        assert world.ask(world.here) == "refused"
        assert cache.tasks()[0]["name"] == "UnBindEip"
        assert "publicip_info" not in cache.show()
        assert cache.show()["enable_publicip"] is False
        with refused(400, "DCS.4800"):
            unbind(client, cache)


@needs_filter
def test_the_public_address_follows_the_master_behind_its_whitelist(fronted: Service, world: World) -> None:
    client = fronted.sdk_token()
    with made(fronted, name="public-failover", spec_code=HA) as cache:
        outside.put(
            cache, enable_whitelist=True, whitelist=[{"group_name": "w", "ip_list": [outside.FRIEND]}]
        )
        assert job(cache, bind(client, cache)) == "SUCCESS"
        assert world.ask(world.here) == "refused"

        def pid() -> str:
            return outside.info(world.here, "server")["process_id"]

        first = pid()
        os.kill(int(first), signal.SIGKILL)
        until(lambda: pid() != first, seconds=30, what="another master at the public address", pause=0.02)
        assert outside.info(world.here, "replication")["role"] == "master"
        assert world.ask(world.here) == "refused"
        until(
            lambda: {node.status for node in nodes(client, cache)} == {"Active"},
            seconds=30,
            what="the killed one to be back",
        )
        answer = client.change_master_standby_async(dcs.ChangeMasterStandbyAsyncRequest(cache.id))
        assert job(cache, answer.job_id) == "SUCCESS"
        until(
            lambda: outside.info(world.here, "replication")["role"] == "master",
            seconds=20,
            what="the master at the public address",
        )
        assert world.ask(world.here) == "refused"


@needs_filter
def test_what_cannot_have_public_access_is_refused(fronted: Service, world: World) -> None:
    client = fronted.sdk_token()
    with (
        made(fronted, name="public-1") as one,
        made(fronted, name="public-2") as other,
        made(fronted, name="free", password=None, no_password_access=True) as free,
    ):
        for elb_id in ("front-3", None):
            with refused(400, "DCS.4800", "elb_id"):
                client.update_public_ip(
                    dcs.UpdatePublicIpRequest(one.id, dcs.UpdatePublicIpRequestBody(elb_id=elb_id))
                )
        with refused(400, "DCS.4850"):
            bind(client, free)
        assert job(one, bind(client, one, LOST)) == "FAIL"  # this machine does not have it
        assert "publicip_info" not in one.until_running()
        assert job(one, bind(client, one)) == "SUCCESS"
        with refused(400, "DCS.4800", "elb_id"):
            bind(client, other)  # one port of one address is one instance's
        with refused(400, "DCS.4800", "no_password_access"):
            body = dcs.ResetInstancePasswordBody(no_password_access=True)
            client.reset_password(dcs.ResetPasswordRequest(one.id, body))
    with made(fronted, name="public-cluster", **clusters.spec("r2.4")) as cluster, refused(400, "DCS.4007"):
        bind(client, cluster)


def test_without_an_address_of_the_operators_it_is_refused(service: Service, steady: Cache) -> None:
    with refused(400, "DCS.4027", "public_addresses"):
        bind(service.sdk_token(), steady)
    assert "publicip_info" not in steady.show()
