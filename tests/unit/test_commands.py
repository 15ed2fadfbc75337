"""Which commands tenants are denied, as rules. That servers take the rules: tests/e2e/test_engine.py."""

import pytest

from cacheyard.domain.commands import denied_rules

OLD, NEW = (6, 2, 14), (7, 0, 15)
ALWAYS = {"-debug", "-module", "-shutdown", "-replicaof", "-slaveof", "-psync", "-migrate", "-config", "-acl"}


@pytest.mark.parametrize("mode", ["single", "ha", "cluster", "proxy", "ha_rw_split"])
@pytest.mark.parametrize("version", ["4.0", "5.0", "6.0", "7.0"])
@pytest.mark.parametrize("server", [OLD, NEW])
def test_what_leads_out_of_the_instance_is_always_denied(
    mode: str, version: str, server: tuple[int, int, int]
) -> None:
    rules = denied_rules(mode, version, server)
    assert set(rules) >= ALWAYS
    assert "+config|set" not in rules
    assert "+config|rewrite" not in rules
    assert "+acl|setuser" not in rules
    assert rules.index("-config") < rules.index("+config|get")


def test_no_single_subcommand_is_denied_as_older_servers_cannot() -> None:
    for mode in ("single", "cluster", "proxy"):
        assert not [rule for rule in denied_rules(mode, "7.0", NEW) if rule.startswith("-") and "|" in rule]


def test_version_7_forbids_resetstat_and_allows_lastsave() -> None:
    assert "+config|resetstat" in denied_rules("ha", "6.0", NEW)
    assert "-lastsave" in denied_rules("ha", "6.0", NEW)
    assert "+config|resetstat" not in denied_rules("ha", "7.0", NEW)
    assert "-lastsave" not in denied_rules("ha", "7.0", NEW)


def test_cluster_administration_is_denied_where_there_is_a_cluster() -> None:
    assert "-cluster" in denied_rules("cluster", "6.0", OLD)
    assert "+cluster|slots" in denied_rules("cluster", "6.0", OLD)
    assert "+cluster|shards" in denied_rules("cluster", "7.0", NEW)
    assert "+cluster|shards" not in denied_rules("cluster", "6.0", OLD)
    assert "-cluster" not in denied_rules("single", "7.0", NEW)


def test_behind_a_proxy_more_is_denied() -> None:
    assert {"-wait", "-swapdb", "-move"} <= set(denied_rules("proxy", "6.0", NEW))
    assert "-wait" in denied_rules("ha_rw_split", "6.0", NEW)
    assert "-wait" not in denied_rules("ha", "6.0", NEW)
