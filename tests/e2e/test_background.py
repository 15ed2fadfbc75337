"""Chapter 5.12: background tasks tell what really happens, step by step, and only ended ones are deleted."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from huaweicloudsdkdcs import v2 as dcs
from support.caches import HA, SINGLE, Cache, frozen, made, pid_of, refused
from support.service import Service
from support.waiting import until

UNKNOWN = "00000000-0000-0000-0000-000000000000"


def progress(sdk: Any, cache: Cache, task_id: str) -> Any:
    request = dcs.ShowBackgroundTaskProgressRequest(instance_id=cache.id, task_id=task_id)
    return sdk.show_background_task_progress(request)


def tasks(sdk: Any, cache: Cache, **query: Any) -> Any:
    return sdk.list_background_task(dcs.ListBackgroundTaskRequest(instance_id=cache.id, **query)).tasks


def test_every_change_is_a_task_newest_first(service: Service, sdk: Any) -> None:
    with made(service, spec_code=HA) as cache:
        assert cache.act("soft_restart").status_code == 200
        cache.until_running()
        bigger = {"spec_code": HA.replace("128", "256"), "new_capacity": 0.25}
        assert cache.http("POST", "/resize", json=bigger).status_code == 204
        cache.until_running()
        found = tasks(sdk, cache)
        assert [task.name for task in found] == ["EXTEND", "softRestart", "create"]
        assert {task.status for task in found} == {"SUCCESS"}
        assert {task.user_name for task in found} == {service.facts.user_name}
        details = found[0].details
        assert (details.old_capacity, details.new_capacity) == ("0.125", "0.25")
        assert (details.old_resource_spec_code, details.new_resource_spec_code) == (HA, bigger["spec_code"])
        everywhere = sdk.list_center_task(dcs.ListCenterTaskRequest(limit=100)).tasks
        assert {task.id for task in found} <= {task.id for task in everywhere}
        told = progress(sdk, cache, found[2].id)
        assert told.progress == 100
        assert [step.step_name for step in told.step_details] == [
            "Start nodes.",
            "Form topology.",
            "Verify from outside.",
            "Open for clients.",
        ]
        assert {step.step_status for step in told.step_details} == {"FINISH"}
        assert all(step.begin_time <= step.end_time for step in told.step_details)


def test_a_task_under_way_shows_where_it_is_and_cannot_be_deleted(service: Service, sdk: Any) -> None:
    with made(service, spec_code=HA) as cache:
        with frozen(pid_of(cache)):  # the master does not end: restart_masters waits
            assert cache.act("restart").status_code == 200
            task = tasks(sdk, cache)[0]
            assert task.status == "EXECUTING"
            told = until(
                lambda: (p := progress(sdk, cache, task.id)).step_details[0].step_status == "FINISH" and p,
                seconds=20,
                what="the replica to be restarted",
            )
            states = [step.step_status for step in told.step_details]
            assert states == ["FINISH", "EXECUTING", "WAITING", "WAITING", "WAITING"]
            assert told.progress == 20
            job = sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=task.id))
            assert (job.status, job.end_time) == ("RUNNING", None)
            with refused(400, "DCS.4957"):
                sdk.delete_background_task(
                    dcs.DeleteBackgroundTaskRequest(instance_id=cache.id, task_id=task.id)
                )
            with refused(400, "DCS.4957"):
                sdk.delete_center_task(
                    dcs.DeleteCenterTaskRequest(task_id=task.id, body=dcs.DeleteCenterTaskRequestBody())
                )
        cache.until_running()
        job = sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=task.id))
        assert (job.job_id, job.job_type, job.status) == (task.id, "restart", "SUCCESS")
        assert int(job.begin_time) <= int(job.end_time)


def test_the_record_of_an_ended_task_is_deleted(service: Service, sdk: Any) -> None:
    with made(service) as cache:
        cache.act("flush")
        cache.until_running()
        flush, create = tasks(sdk, cache)
        sdk.delete_background_task(dcs.DeleteBackgroundTaskRequest(instance_id=cache.id, task_id=flush.id))
        assert [task.id for task in tasks(sdk, cache)] == [create.id]
        request = dcs.DeleteCenterTaskRequest(task_id=create.id, body=dcs.DeleteCenterTaskRequestBody())
        sdk.delete_center_task(request)
        assert tasks(sdk, cache) == []
        with refused(404, "DCS.4001"):
            progress(sdk, cache, create.id)
        with refused(404, "DCS.4001"):
            sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=create.id))


def test_the_deletion_of_an_instance_stays_on_record(service: Service, sdk: Any) -> None:
    with made(service) as cache:
        pass
    found = sdk.list_center_task(dcs.ListCenterTaskRequest(limit=100)).tasks
    mine = [task.name for task in found if task.id in {t.id for t in found[:2]}]
    assert "delete" in mine
    assert cache.is_gone()


def test_tasks_are_paged_and_chosen_by_time(service: Service, sdk: Any) -> None:
    with made(service) as cache:
        for _ in range(2):
            cache.act("flush")
            cache.until_running()
        pages = [tasks(sdk, cache, offset=offset, limit=2) for offset in (0, 2, 4)]
        assert [len(page) for page in pages] == [2, 1, 0]
        now = datetime.now(UTC)
        ago, ahead = ((now + timedelta(hours=h)).strftime("%Y%m%d%H%M%S") for h in (-1, 1))
        assert len(tasks(sdk, cache, start_time=ago, end_time=ahead)) == 3
        assert tasks(sdk, cache, start_time=ahead) == []
        assert tasks(sdk, cache, end_time=ago) == []


@pytest.mark.parametrize("time", ["20261399000000", "2026", "yesterday-at-12"])
def test_a_time_that_is_none_is_refused(steady: Cache, time: str) -> None:
    answer = steady.http("GET", f"/tasks?start_time={time}")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "DCS.4800")
    assert "start_time" in answer.json()["error_msg"]


def test_a_task_of_another_instance_is_not_there(service: Service, sdk: Any, steady: Cache) -> None:
    with made(service) as cache:
        theirs = tasks(sdk, cache)[0].id
        for task_id in (theirs, UNKNOWN):
            with refused(404, "DCS.4001"):
                progress(sdk, steady, task_id)


def test_a_change_that_fails_is_undone_and_says_why(fresh_service: Callable[..., Service]) -> None:
    """The request sees figures from before the server was filled; the task asks the server."""
    service = fresh_service(CACHEYARD_OBSERVE_SECONDS="3600")
    sdk = service.sdk()
    bigger = SINGLE.replace("128", "256")
    with made(service, spec_code=bigger, capacity=0.25) as cache:
        with cache.client() as link:
            for number in range(11):
                link.set(f"key-{number}", "x" * (10 << 20))
        answer = cache.http("POST", "/resize", json={"spec_code": SINGLE, "new_capacity": 0.125})
        assert answer.status_code == 204, answer.text
        shown = cache.until_running()
        assert shown["spec_code"] == bigger
        task = tasks(sdk, cache)[0]
        assert task.status == "FAILED"
        job = sdk.show_job_info(dcs.ShowJobInfoRequest(job_id=task.id))
        assert job.status == "FAIL"
        assert "MB are used" in job.fail_reason
