"""Client IP pass-through: whether sessions tell from where clients come."""

import threading
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support import clusters
from support.caches import HA, Cache, made, refused
from support.proxied import FORMS, job, needs_program
from support.service import Service

HIDDEN = "198.19."


def switch(service: Service, cache: Cache, on: bool) -> str:
    """Ask for it; how the job ended."""
    body = dcs.UpdateClientIpTransparentTransmissionRequestBody(transparent_client_ip_enable=on)
    request = dcs.UpdateClientIpTransparentTransmissionRequest(instance_id=cache.id, body=body)
    return job(cache, service.sdk_token().update_client_ip_transparent_transmission(request).job_id)


def addresses(client: Any) -> list[str]:
    return [one["addr"] for one in client.client_list()]


def monitored(cache: Cache, client: Any) -> str:
    """From where MONITOR says that a client's commands come. Its proxy hears of it a moment later."""
    seen = threading.Event()

    def keep_on() -> None:
        while not seen.wait(0.02):
            client.set("a", "1")

    talking = threading.Thread(target=keep_on)
    try:
        with cache.client() as listening, listening.monitor() as monitor:
            talking.start()
            said = next(one for one in monitor.listen() if one["command"].startswith("SET"))
            return f"{said['client_address']}:{said['client_port']}"
    finally:
        seen.set()
        talking.join()


@needs_program
@pytest.mark.parametrize("mode", FORMS)
def test_behind_proxies_sessions_tell_where_clients_come_from_or_do_not(yard: Service, mode: str) -> None:
    with made(yard, az_codes=yard.facts.az_codes[:2], **FORMS[mode]) as cache:
        assert cache.show()["features"]["support_transparent_client_ip"] is True
        with cache.client() as old, cache.client() as other:
            assert other.ping()
            assert {one.partition(":")[0] for one in addresses(old)} == {"127.0.0.1"}
            with refused(400, "DCS.4847"):
                switch(yard, cache, True)

            assert switch(yard, cache, False) == "SUCCESS"
            assert cache.show()["transparent_client_ip_enable"] is False
            shown = addresses(old)
            assert len(set(shown)) == len(shown) == 2
            assert all(one.startswith(HIDDEN) for one in shown)
            assert monitored(cache, old).startswith(HIDDEN)
            mine = old.client_info()["addr"]
            assert old.client_kill_filter(addr=next(one for one in shown if one != mine)) == 1
            with refused(400, "DCS.4846"):
                switch(yard, cache, False)

            assert switch(yard, cache, True) == "SUCCESS"
            assert cache.show()["transparent_client_ip_enable"] is True
            assert {one.partition(":")[0] for one in addresses(old)} == {"127.0.0.1"}


@pytest.mark.parametrize(
    "changes", [{}, {"spec_code": HA}, clusters.spec("r2.4")], ids=["single", "ha", "cluster"]
)
def test_where_clients_talk_to_servers_it_is_on_and_stays_so(yard: Service, changes: dict[str, Any]) -> None:
    with made(yard, az_codes=yard.facts.az_codes[:2], **changes) as cache:
        shown = cache.show()
        assert shown["transparent_client_ip_enable"] is True
        assert shown["features"]["support_transparent_client_ip"] is False
        with refused(400, "DCS.4841", "servers"):
            switch(yard, cache, False)
        with refused(400, "DCS.4847"):
            switch(yard, cache, True)
        with refused(400, "DCS.4800", "transparent_client_ip_enable"):
            request = dcs.UpdateClientIpTransparentTransmissionRequest(
                instance_id=cache.id, body=dcs.UpdateClientIpTransparentTransmissionRequestBody()
            )
            yard.sdk_token().update_client_ip_transparent_transmission(request)
        path = f"/v2/{{p}}/{cache.id}/source-ip-transparent-transmission"
        answer = yard.http("PUT", path, json={"transparent_client_ip_enable": False})
        assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4841")
        assert cache.show()["transparent_client_ip_enable"] is True
        assert not any(task["name"].startswith("UpdateClientIp") for task in cache.tasks())
