"""The command as people and scripts use it, against a running service."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from support.service import Service
from support.waiting import until

Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cacheyard", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def on(service: Service) -> Run:
    """The command on the service's data directory."""
    return lambda *words: run(*words, "--data", str(service.data))


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


@pytest.fixture
def cache(on: Run, service: Service) -> Iterator[str]:
    """The id of a running instance that `call` made."""
    facts = service.facts
    made = told(
        on(
            *("call", "create_instance", "--json", "--name=called", "--engine=Redis", "--engine-version=7.0"),
            *(
                "--capacity=0.125",
                "--spec_code",
                "redis.single.xu1.tiny.128",
                f"--az_codes={facts.az_codes[0]}",
            ),
            *(f"--vpc_id={facts.vpc_id}", f"--subnet_id={facts.subnet_id}", "--no_password_access"),
            '--tags=[{"key":"by","value":"call"}]',
        )
    )
    instance = made["instances"][0]["instance_id"]

    def runs() -> bool:
        shown = told(on("call", "show_instance", "--json", f"--instance_id={instance}"))
        return bool(shown["status"] == "RUNNING")

    until(runs, seconds=20, what=f"{instance} to run")
    yield instance
    gone = on("call", "delete_single_instance", f"--instance_id={instance}")
    assert (gone.returncode, gone.stdout) == (0, "Done.\n")


def test_call_creates_shows_lists_and_deletes(on: Run, cache: str) -> None:
    listed = on("call", "list_instances", "--name=called")
    assert listed.stdout.splitlines()[0].split()[:3] == ["instance_id", "name", "status"]
    assert cache in listed.stdout
    assert "\x1b" not in listed.stdout
    shown = on("call", "ShowInstance", "--instance-id", cache)
    assert "key=by value=call" in shown.stdout


def test_two_equal_changes_in_one_second_are_two_requests(on: Run, cache: str) -> None:
    words = ("call", "update_instance", f"--instance_id={cache}", "--description=twice")
    assert [on(*words).returncode for _ in range(2)] == [0, 0]


def test_a_refusal_is_code_and_message_and_1(on: Run) -> None:
    done = on("call", "show_instance", "--instance_id=00000000-0000-0000-0000-000000000000")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "cacheyard: DCS.3022: This DCS instance does not exist.\n"
    nested = on("call", "v1_show_instance", "--instance_id=00000000-0000-0000-0000-000000000000")
    assert nested.returncode == 1
    assert nested.stderr.startswith("cacheyard: 111")
    assert nested.stderr.count("\n") == 1


def test_wrong_words_are_2(on: Run) -> None:
    assert on("call", "lst_instances").returncode == 2
    assert on("call", "show_instance").returncode == 2
    assert on("call", "list_instances", "--limt=1").returncode == 2


def test_call_alone_lists_and_help_explains() -> None:
    listed = run("call")
    assert listed.returncode == 0
    assert "create_instance" in listed.stdout
    assert "(not built)" in listed.stdout
    helped = run("call", "create_instance", "--help")
    assert helped.returncode == 0
    assert "--spec_code" in helped.stdout


def test_call_needs_no_data_directory_when_the_environment_says_all(service: Service) -> None:
    facts = service.facts
    who = {
        "CACHEYARD_ENDPOINT": facts.endpoint,
        "CACHEYARD_ACCESS_KEY": facts.access_key,
        "CACHEYARD_SECRET_KEY": facts.secret_key,
        "CACHEYARD_PROJECT_ID": facts.project_id,
    }
    assert "vpcs" in told(run("call", "list_vpcs", "--json", **who))
    wrong = run("call", "list_vpcs", **{**who, "CACHEYARD_SECRET_KEY": "x"})
    assert wrong.returncode == 1
    assert "signature" in wrong.stderr.lower()
    partly = run("call", "list_vpcs", CACHEYARD_ENDPOINT=facts.endpoint, CACHEYARD_ACCESS_KEY="")
    assert partly.returncode == 2


def test_call_says_how_to_start_when_nothing_serves(tmp_path: Path) -> None:
    done = run("call", "list_instances", "--data", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "cacheyard up --data" in done.stderr
    assert not (tmp_path / "none").exists()


def may_list(service: Service, project_id: str, **headers: str) -> bool:
    url = f"{service.facts.endpoint}/v2/{project_id}/instances"
    return httpx.get(url, headers=headers).status_code == 200


def test_users_projects_roles_keys_and_tokens(on: Run, service: Service) -> None:
    user = told(on("user", "add", "ann", "--json"))
    project = told(on("project", "add", "lab", "--json"))
    assert on("user", "add", "ann").returncode == 1
    assert on("role", "grant", "ann", "lab", "no such role").returncode == 1
    assert on("role", "grant", "ann", "lab", "DCS FullAccess").returncode == 0
    assert told(on("role", "list", "ann", "--json")) == [
        {"project": "lab", "role": "DCS FullAccess", "group": ""}
    ]

    token = on("token", "--user=ann", f"--password={user['password']}", "--project=lab").stdout.strip()
    auth = {"X-Auth-Token": token}
    assert may_list(service, project["id"], **auth)
    assert not may_list(service, service.facts.project_id, **auth)

    key = told(on("key", "create", "ann", "--json"))
    who = {
        "CACHEYARD_ENDPOINT": service.facts.endpoint,
        "CACHEYARD_ACCESS_KEY": key["access_key"],
        "CACHEYARD_SECRET_KEY": key["secret_key"],
        "CACHEYARD_PROJECT_ID": project["id"],
    }
    assert told(run("call", "list_instances", "--json", **who))["instances"] == []
    assert key["secret_key"] not in on("key", "list").stdout

    assert on("user", "disable", "ann").returncode == 0
    assert not may_list(service, project["id"], **auth)
    assert run("call", "list_instances", **who).returncode == 1
    assert on("user", "enable", "ann").returncode == 0
    assert run("call", "list_instances", **who).returncode == 0

    assert on("key", "delete", key["access_key"]).returncode == 0
    assert run("call", "list_instances", **who).returncode == 1
    fresh = told(on("user", "password", "ann", "--password=Other-pass-1", "--json"))
    assert fresh["password"] == "Other-pass-1"
    assert on("token", "--user=ann", f"--password={user['password']}").returncode == 1
    assert on("token", "--user=ann", "--password=Other-pass-1").returncode == 0
    assert on("role", "revoke", "ann", "lab", "DCS FullAccess").returncode == 0
    assert on("token", "--user=ann", "--password=Other-pass-1", "--project=lab").returncode == 1


def test_the_first_users_token_needs_nothing(on: Run, service: Service) -> None:
    token = on("token").stdout.strip()
    assert may_list(service, service.facts.project_id, **{"X-Auth-Token": token})


def test_accounts_are_not_made_where_there_is_no_yard(tmp_path: Path) -> None:
    done = run("user", "list", "--data", str(tmp_path / "none"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_doctor_and_coverage_answer_programs() -> None:
    assert told(run("doctor", "--json"))["able"] is True
    counted = told(run("coverage", "--json"))
    assert 0 < counted["built"] <= counted["total"]


def test_a_setting_that_cannot_be_is_one_line() -> None:
    done = run("up", CACHEYARD_PORT="many")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
