"""Clients write while their instance gets another size, another type, more or fewer replicas or shards."""

import time
from collections.abc import Callable

import pytest
from chaos.contents import fill, missing
from chaos.rounds import SHAPES, SOAK
from chaos.service import PASSWORD, Service, spec
from chaos.traffic import Traffic
from chaos.whole import await_whole
from support.proxied import needs_program

TIMES = 10 if SOAK else 1
GAP = 1.0 if SOAK else 5.0  # seconds without a write
SECONDS = 240.0 if SOAK else 90.0  # for one resize
KEYS = 200_000 if SOAK else 10_000  # there before: slots take their keys with them

ADD, REMOVE, RETYPE = "createReplication", "deleteReplication", "instanceType"

# Where from, and what to: spec code and type of change.
RESIZES: dict[str, tuple[str, list[tuple[str, str | None]]]] = {
    "ha, size": (SHAPES["ha"], [(spec("ha", 256), None), (SHAPES["ha"], None)]),
    "ha, replicas": (SHAPES["ha"], [(SHAPES["ha-r3"], ADD), (SHAPES["ha"], REMOVE)]),
    "cluster, shards": (SHAPES["cluster"], [(SHAPES["cluster-s4"], None), (SHAPES["cluster"], None)]),
    "cluster, replicas": (
        SHAPES["cluster"],
        [(SHAPES["cluster-r3"], ADD), (SHAPES["cluster"], REMOVE)],
    ),
    "cluster, size": (SHAPES["cluster"], [(spec("cluster", 8192), None), (SHAPES["cluster"], None)]),
    "proxy, size": (SHAPES["proxy"], [(spec("proxy", 8192), None), (SHAPES["proxy"], None)]),
    "ha_rw_split, replicas": (
        SHAPES["ha_rw_split"],
        [(SHAPES["ha_rw_split-r3"], ADD), (SHAPES["ha_rw_split"], REMOVE)],
    ),
    "ha to proxy and back": (spec("ha", 1024), [(SHAPES["proxy"], RETYPE), (spec("ha", 1024), RETYPE)]),
    "ha_rw_split to proxy and back": (
        SHAPES["ha_rw_split"],
        [(SHAPES["proxy"], RETYPE), (SHAPES["ha_rw_split"], RETYPE)],
    ),
}
if SOAK:
    RESIZES["proxy, shards"] = (
        SHAPES["proxy"],
        [(spec("proxy", 48 * 1024), None), (SHAPES["proxy"], None)],
    )


@pytest.mark.timeout(60 + 2 * int(SECONDS) * TIMES)
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=[needs_program] if "proxy" in what or "split" in what else [])
        for what in RESIZES
    ],
)
def test_a_resize_under_load_loses_no_write(
    service: Service, what: str, tell: Callable[[object], None]
) -> None:
    first, changes = RESIZES[what]
    instance_id = str(service.running_instance("cache", first, engine_version="6.0")["instance_id"])
    shown = await_whole(service, instance_id)
    fill(shown, KEYS)
    for to, change_type in changes * TIMES:
        shown = await_whole(service, instance_id)
        with Traffic(shown, PASSWORD) as traffic:
            began = time.monotonic()
            service.resize(instance_id, to, change_type)
            shown = service.now_running(instance_id, SECONDS)
            took = time.monotonic() - began
            traffic.flows(5, writes=100)
            over = time.monotonic()
            gap = traffic.stop().gap(began, over)
        assert shown["spec_code"] == to, service.story(instance_id)
        shown = await_whole(service, instance_id)
        lost = traffic.lost(shown["ip"])
        tell(
            f"{what}, to {to} in {took:.1f} s: longest gap {1000 * gap:.0f} ms; lost {len(lost)} of "
            f"{traffic.acknowledged} acknowledged; {dict(traffic.errors)}"
        )
        assert not lost, (lost[:5], service.log())
        gone = missing(shown, KEYS)
        assert not gone, (to, gone, service.log())
        assert gap <= GAP, service.log()
