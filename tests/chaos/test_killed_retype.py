"""The type of an instance changes while clients write, and something dies in the middle of it.

The service, killed at a step that chance chooses, finishes the change when it is back, or has taken it back;
no acknowledged write is lost, and clients come back by themselves. The same when the master of that moment
dies. CACHEYARD_SEED repeats a run's choices (not its timing); CACHEYARD_SOAK=1 is the full count.
"""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from chaos.contents import fill, missing
from chaos.rounds import SHAPES, SOAK, masters
from chaos.service import PASSWORD, Service, nothing_left, spec
from chaos.traffic import LAST_SECOND, Traffic
from chaos.whole import await_whole
from support.proxied import needs_program

pytestmark = needs_program

SEED = int(os.environ.get("CACHEYARD_SEED") or random.randrange(1 << 32))
TIMES = 50 if SOAK else 2  # changes of each pair of types, and for each that dies
KEYS = 20_000 if SOAK else 3_000
UNDER_WAY = 8.0  # seconds: so long a change takes about, here
MOMENT = 0.6  # of the kills, this part is aimed at the moment in which the type changes
ENDED = 120.0  # seconds until the task has ended
FLOW = (
    70.0  # seconds until clients write again: writes may be held back for a minute by a service that is away
)
SIZES = {"ha": spec("ha", 1024), "ha_rw_split": SHAPES["ha_rw_split"]}


def moment(service: Service, instance_id: str) -> float:
    """Wait for the moment to strike: chance says which, most often while the type changes. When it was."""
    if random.random() > MOMENT:
        time.sleep(random.uniform(0, UNDER_WAY))
        return time.monotonic()
    query = (
        "SELECT s.status FROM tasks t JOIN task_steps s ON s.task_id = t.id WHERE t.instance_id = ? "
        "AND t.kind LIKE '%_proxy' AND s.name = 'Change type.' ORDER BY t.created_at DESC LIMIT 1"
    )
    deadline = time.monotonic() + ENDED
    while service.rows(query, instance_id)[0]["status"] == "WAITING" and time.monotonic() < deadline:
        if not service.unfinished():
            break
    time.sleep(random.choice((0.0, 0.005, 0.02, 0.05, 0.1, 0.2)))
    return time.monotonic()


def kill_service(service: Service, _instance_id: str) -> bool:
    """It is started again at once. Whether servers died."""
    service.kill()
    service.start()
    return False


def kill_master(service: Service, instance_id: str) -> bool:
    """One of them, if it is there."""
    node = random.choice(masters(service, instance_id))
    if (pid := service.pid(node)) is None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


@pytest.mark.timeout(60 + 120 * TIMES)
@pytest.mark.parametrize("who", [kill_service, kill_master], ids=["service", "master"])
@pytest.mark.parametrize("shape", SIZES)
def test_who_dies_while_the_type_changes_costs_no_write(
    service: Service, shape: str, who: Callable[[Service, str], bool], tell: Callable[[object], None]
) -> None:
    random.seed(SEED)
    made = service.running_instance("cache", SIZES[shape], engine_version="6.0")
    instance_id, code = str(made["instance_id"]), SIZES[shape]
    fill(await_whole(service, instance_id), KEYS)
    taken_back, gaps = 0, []
    for _ in range(TIMES):
        shown = await_whole(service, instance_id)
        to = SIZES[shape] if shown["cache_mode"] == "proxy" else SHAPES["proxy"]
        with Traffic(shown, PASSWORD) as traffic:
            traffic.flows(10, writes=50)
            began = time.monotonic()
            service.resize(instance_id, to, "instanceType")
            struck = moment(service, instance_id)
            servers_died = who(service, instance_id)
            nothing_left(service.unfinished, seconds=ENDED, what="the task to end")
            traffic.flows(FLOW, writes=50)
            over = time.monotonic()
            gaps.append(traffic.stop().gap(began, over))
        shown = await_whole(service, instance_id)
        assert shown["spec_code"] in (code, to), service.story(instance_id)
        taken_back += shown["spec_code"] == code
        code = str(shown["spec_code"])
        lost = traffic.lost()
        if servers_died:  # what a server had not passed on when it died is lost as ever
            lost = [one for one in lost if not struck - LAST_SECOND < one.at < struck + LAST_SECOND]
        assert lost == [], (SEED, lost[:5], struck - began, service.story(instance_id), service.log())
        assert missing(shown, KEYS) == [], (SEED, service.story(instance_id))
    tell(
        f"seed {SEED}, {shape}, {who.__name__}: {TIMES} changes, {taken_back} of them taken back, "
        f"longest gap {1000 * max(gaps):.0f} ms"
    )
