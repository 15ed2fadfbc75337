"""The configuration that servers get: complete, fit for their version, free of secrets on disk."""

from pathlib import Path
from typing import Any

import pytest
from support import rows

from cacheyard.domain.nodes import AclUser, Address, NodeSettings
from cacheyard.engine.redis_conf import (
    INTERNAL_USER,
    REPLICATION_USER,
    acl_rules,
    append_only,
    digest,
    live,
    renames_in,
    render,
    replication,
)

OLD, NEW = (6, 2, 14), (7, 0, 15)
SECRET = "not-on-disk"
HERE = Path("/data/nodes/n 1")


def settings(**changes: Any) -> NodeSettings:
    chosen: dict[str, Any] = {
        "bind": ("127.64.0.5", "127.64.0.9"),
        "port": 6380,
        "maxmemory": 134217728,
        "maxclients": 1000,
        "databases": 256,
        "persistent": False,
        "users": (AclUser(name="default", password_sha256="ab" * 32, rules=("~*", "&*", "+@all", "-debug")),),
        "internal_secret": "sealed",
    }
    return rows.settings(**(chosen | changes))


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_a_server_gets_all_that_it_needs() -> None:
    file = lines(render(settings(), SECRET, NEW, HERE).file)
    for line in (
        "bind 127.64.0.5 127.64.0.9",
        "bind-source-addr 127.64.0.5",
        "replica-announce-ip 127.64.0.5",
        "replica-announce-port 6380",
        "protected-mode no",
        "daemonize no",
        'dir "/data/nodes/n 1"',
        "databases 256",
        "maxmemory 134217728",
        "maxclients 1000",
        "appendonly no",
        'save ""',
        "repl-diskless-sync-delay 0",
    ):
        assert line in file


def test_the_file_alone_starts_no_server_and_the_gate_opens_the_port_last() -> None:
    rendered = render(settings(), SECRET, NEW, HERE)
    assert [line for line in lines(rendered.file) if line.startswith("port ")] == ["port 0"]
    assert lines(rendered.gate)[-1] == "port 6380"


def test_no_secret_is_in_a_file() -> None:
    rendered = render(settings(replica_of=Address(ip="127.64.0.6", port=6379)), SECRET, NEW, HERE)
    written = rendered.file + rendered.acl
    assert SECRET not in written
    assert replication(SECRET)["masterauth"] not in written
    assert replication(SECRET)["masterauth"] in rendered.gate


def test_the_replication_password_does_not_tell_the_secret() -> None:
    """Tenants may read all parameters, `masterauth` too."""
    assert SECRET not in render(settings(), SECRET, NEW, HERE).gate
    assert replication(SECRET) == replication(SECRET)
    assert replication(SECRET) != replication("another")


def test_a_replica_starts_as_one() -> None:
    rendered = render(settings(replica_of=Address(ip="127.64.0.6", port=6379)), SECRET, NEW, HERE)
    assert "replicaof 127.64.0.6 6379" in lines(rendered.file)
    assert f"masteruser {REPLICATION_USER}" in lines(rendered.gate)


def test_an_older_server_is_spared_what_it_does_not_know() -> None:
    parameters = {
        "hash-max-listpack-entries": "512",
        "maxmemory-clients": "5%",
        "maxmemory-policy": "noeviction",
    }
    file = render(settings(parameters=parameters), SECRET, OLD, HERE).file
    assert "hash-max-ziplist-entries 512" in lines(file)
    assert "maxmemory-policy noeviction" in lines(file)
    for name in (
        "bind-source-addr",
        "enable-debug-command",
        "maxmemory-clients",
        "listpack",
        "shutdown-timeout",
    ):
        assert name not in file


def test_parameters_win_over_our_choices() -> None:
    chosen = live(settings(parameters={"hz": "20", "appendfsync": "no"}), NEW)
    assert chosen["hz"] == "20"
    assert chosen["appendfsync"] == "no"


@pytest.mark.parametrize(
    ("persistent", "parameters", "appends"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"appendonly": "no"}, False),
        (False, {"appendonly": "yes"}, True),
    ],
)
def test_the_append_only_file(persistent: bool, parameters: dict[str, str], appends: bool) -> None:
    chosen = settings(persistent=persistent, parameters=parameters)
    assert append_only(chosen) is appends
    assert live(chosen, NEW)["appendonly"] == ("yes" if appends else "no")
    assert live(chosen, NEW)["save"] == ""


def test_a_dump_is_read_before_the_append_only_file_is_turned_on() -> None:
    assert "appendonly no" in lines(render(settings(persistent=True), SECRET, NEW, HERE, from_dump=True).file)


def test_buffer_limits_go_one_class_a_line() -> None:
    limits = "normal 0 0 0 replica 268435456 67108864 60 pubsub 33554432 8388608 60"
    file = lines(render(settings(parameters={"client-output-buffer-limit": limits}), SECRET, OLD, HERE).file)
    assert "client-output-buffer-limit replica 268435456 67108864 60" in file
    assert "client-output-buffer-limit pubsub 33554432 8388608 60" in file


def test_renamed_commands_can_be_read_back() -> None:
    renames = {"flushall": "wipe-all", "keys": "k_1"}
    assert renames_in(render(settings(rename_commands=renames), SECRET, NEW, HERE).file) == renames


@pytest.mark.parametrize("value", ["a\nport 1", "a\rb", "a\0b"])
def test_a_value_cannot_smuggle_a_line_in(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        render(settings(parameters={"maxmemory-policy": value}), SECRET, NEW, HERE)


def test_an_odd_value_stays_one_word() -> None:
    file = lines(render(settings(parameters={"notify-keyspace-events": 'K "x\\'}), SECRET, NEW, HERE).file)
    assert 'notify-keyspace-events "K \\"x\\\\"' in file


def test_users_are_written_whole_with_digests() -> None:
    acl = lines(render(settings(), SECRET, NEW, HERE).acl)
    assert f"user default reset on #{'ab' * 32} ~* &* +@all -debug" in acl
    assert f"user {INTERNAL_USER} reset on #{digest(SECRET)} ~* &* +@all" in acl
    assert any(line.startswith(f"user {REPLICATION_USER} ") and "+@all" not in line for line in acl)


def test_nobody_gets_in_unnamed_unless_a_user_is_called_default() -> None:
    assert "user default reset" in lines(render(settings(users=()), SECRET, NEW, HERE).acl)


def test_a_tenant_cannot_take_an_internal_name() -> None:
    impostor = AclUser(name=INTERNAL_USER, password_sha256="cd" * 32, rules=("+@all",))
    acl = render(settings(users=(impostor,)), SECRET, NEW, HERE).acl
    assert "cd" * 32 not in acl


def test_a_user_without_password_is_let_in() -> None:
    assert acl_rules(AclUser(name="default", password_sha256=None, rules=("+@all",))) == (
        "reset",
        "on",
        "nopass",
        "+@all",
    )
