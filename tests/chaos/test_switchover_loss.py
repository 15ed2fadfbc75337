"""What is planned loses nothing: masters hand over, and servers are restarted, while clients write.

CACHEYARD_SOAK=1 is the full count, with the limits that a quiet machine must keep.
"""

import time
from collections import Counter
from collections.abc import Callable

import pytest
from chaos.rounds import PROXIED, SHAPES, SOAK, USUAL, await_nodes, masters, quantile, swap
from chaos.service import PASSWORD, Service
from chaos.traffic import Traffic
from chaos.whole import await_whole

TIMES = 100 if SOAK else 4
RESTARTS = 10 if SOAK else 1
GAP = 0.2 if SOAK else 2.0  # seconds without a write while a master hands over
SECONDS = 30.0  # for one of them
WRITES = 50  # of each client between two


@pytest.mark.timeout(60 + 10 * TIMES)
@pytest.mark.parametrize("shape", [*USUAL, *PROXIED])
def test_a_planned_switchover_loses_no_write(
    service: Service, shape: str, tell: Callable[[object], None]
) -> None:
    instance_id = str(service.running_instance("cache", SHAPES[shape])["instance_id"])
    shown = await_whole(service, instance_id)
    windows = []
    with Traffic(shown, PASSWORD) as traffic:
        for number in range(TIMES):
            before = {node["id"] for node in masters(service, instance_id)}
            began = time.monotonic()
            swap(service, instance_id, number)
            service.now_running(instance_id, SECONDS)
            assert len(before - {node["id"] for node in masters(service, instance_id)}) == 1
            traffic.flows(SECONDS, WRITES)
            windows.append((began, time.monotonic()))
        traffic.stop()
    await_whole(service, instance_id)
    gaps = [traffic.gap(*window) for window in windows]
    lost = traffic.lost()
    tell(
        f"{shape}, {TIMES} switchovers: gap p50 {1000 * quantile(gaps, 0.5):.0f}, "
        f"p99 {1000 * quantile(gaps, 0.99):.0f}, longest {1000 * max(gaps):.0f} ms; "
        f"lost {len(lost)} of {traffic.acknowledged} acknowledged; {dict(traffic.errors)}"
    )
    assert not lost, (lost[:5], service.log())
    assert max(gaps) <= GAP, (gaps, service.log())


@pytest.mark.timeout(60 + 60 * RESTARTS)
@pytest.mark.parametrize("action", ["restart", "soft_restart"])
@pytest.mark.parametrize("shape", ["ha", "cluster"])
def test_a_restart_loses_no_write(
    service: Service, shape: str, action: str, tell: Callable[[object], None]
) -> None:
    instance_id = str(service.running_instance("cache", SHAPES[shape])["instance_id"])
    shown = await_whole(service, instance_id)
    gaps, errors = [], Counter[str]()
    with Traffic(shown, PASSWORD) as traffic:
        for _ in range(RESTARTS):
            began = time.monotonic()
            service.act(action, instance_id)
            service.now_running(instance_id, SECONDS)
            await_nodes(service, instance_id, seconds=SECONDS)
            traffic.flows(SECONDS, WRITES)
            gaps.append((began, time.monotonic()))
        traffic.stop()
    await_whole(service, instance_id)
    longest = max(traffic.gap(*window) for window in gaps)
    errors.update(traffic.errors)
    lost = traffic.lost()
    tell(
        f"{shape}, {RESTARTS} times {action}: longest gap {1000 * longest:.0f} ms; lost {len(lost)} of "
        f"{traffic.acknowledged} acknowledged; {dict(errors)}"
    )
    assert not lost, (lost[:5], service.log())
