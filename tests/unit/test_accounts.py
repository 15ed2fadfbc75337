"""Which accounts there may be, what becomes of them at the servers, and how tries are counted."""

from typing import Any

import msgspec
import pytest
from support.region import NOW

from cacheyard.domain.accounts import Account, AccountRole, as_before, default_id, name_fault
from cacheyard.domain.commands import denied_rules, reading_rules
from cacheyard.domain.instances import Instance, tenants
from cacheyard.domain.lockout import LOCK_AFTER, Verdict, judge
from cacheyard.domain.passwords import account_fault
from cacheyard.domain.statuses import Status
from cacheyard.engine.redis_conf import RESERVED_USERS, acl_lines

MINUTE = 60_000
MODES = ("single", "ha", "cluster", "proxy", "ha_rw_split")


def account(name: str, role: AccountRole = AccountRole.READ, **more: Any) -> Account:
    facts: dict[str, Any] = {
        "id": f"id-{name}",
        "password_hash": "argon",
        "password_sha256": "ab" * 32,
        "created_at": NOW,
    }
    return Account(name=name, role=role, **facts | more)


def instance(**changes: Any) -> Instance:
    facts: dict[str, Any] = dict.fromkeys(Instance.__struct_fields__, "") | {
        "status": Status.RUNNING,
        "cache_mode": "single",
        "engine_version": "7.0",
        "internal_version": "7.0.15",
        "parameters": {},
        "no_password": False,
        "password_sha256": "cd" * 32,
    }
    return Instance(**facts | changes)


@pytest.mark.parametrize("name", ["a", "Ann", "app-1_x", "z" * 64, "defaults", "my-cacheyard"])
def test_names_that_accounts_may_have(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1a",
        "-a",
        "a b",
        "a\n",
        "a:b",
        "ä",
        "z" * 65,
        "default",
        "Default",
        "Cacheyard-x",
        *sorted(RESERVED_USERS),
    ],
)
def test_names_that_no_account_may_have(name: str) -> None:
    assert name_fault(name) is not None


def test_passwords_of_accounts_have_their_own_rules() -> None:
    assert account_fault("ann", "With%1234") is None  # an instance's may not have it
    for password in ("With:1234", "With\\1234", "Xann-1234", "Xnna-1234", "Short-1", "lower1234"):
        assert account_fault("ann", password) is not None, password


def test_an_account_is_a_line_of_the_acl_file_with_the_digest_of_its_password() -> None:
    accounts = [account("reader"), account("writer", AccountRole.WRITE)]
    lines = acl_lines(tenants(instance(accounts=accounts)), "secret")
    by_name = {line.split()[1]: line for line in lines}
    assert by_name["default"].startswith(f"user default reset on #{'cd' * 32} ~* &* +@all ")
    assert by_name["reader"].startswith(f"user reader reset on #{'ab' * 32} ~* &* -@all +@read ")
    assert by_name["writer"].partition("~*")[2] == by_name["default"].partition("~*")[2]


def test_where_no_password_is_asked_for_there_is_no_account_at_the_servers() -> None:
    free = instance(accounts=[account("reader")], no_password=True, password_sha256=None)
    assert [user.name for user in tenants(free)] == ["default"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("server", [(6, 0, 16), (6, 2, 14), (7, 0, 15), (7, 2, 4)])
@pytest.mark.parametrize("version", ["4.0", "7.0"])
def test_a_reading_account_is_denied_all_that_a_writing_one_is(
    mode: str, version: str, server: tuple[int, int, int]
) -> None:
    rules = reading_rules(mode, version, server)
    whole = {rule for rule in denied_rules(mode, version, server) if rule.startswith("-")}
    given = {rule.partition("|")[0].replace("-", "+", 1) for rule in rules if "|" in rule}
    containers = {"-acl", "-config", "-cluster"}
    assert whole - containers <= set(rules)
    assert rules[:2] == ("-@all", "+@read")
    assert "+config" not in given
    # what is denied comes last: nothing gives it back
    first_denial = rules.index(min(whole - containers))
    assert all(rule.startswith("-") for rule in rules[first_denial:])
    if mode in ("cluster", "proxy"):
        assert "+cluster|slots" in rules


def test_older_servers_are_not_told_commands_that_they_do_not_know() -> None:
    assert "+eval_ro" not in reading_rules("single", "6.0", (6, 2, 14))
    assert "+eval_ro" in reading_rules("single", "6.0", (7, 0, 15))
    assert "+client|setinfo" not in reading_rules("single", "7.0", (7, 0, 15))
    assert "+client|setinfo" in reading_rules("single", "7.0", (7, 2, 4))


def test_what_is_put_back_keeps_descriptions_and_counted_tries() -> None:
    before = [account("ann"), account("bob", description="old")]
    now = [account("bob", AccountRole.WRITE, description="new", wrong_passwords=2), account("carl")]
    back = as_before(now, before)
    assert [(one.name, one.role, one.description, one.wrong_passwords) for one in back] == [
        ("ann", AccountRole.READ, "", 0),
        ("bob", AccountRole.READ, "new", 2),
    ]


def test_the_default_account_has_one_id_for_ever() -> None:
    first, second = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    assert default_id(first) == default_id(first) != default_id(second)


def tried(kept: Account, *, right: bool, now: int) -> tuple[Verdict, Account]:
    verdict = judge(kept, right=right, now=now)
    return verdict, msgspec.structs.replace(kept, **verdict.counts)


def test_five_wrong_passwords_lock_for_five_minutes_and_no_longer() -> None:
    kept = account("ann")
    for left in ("4", "3", "2", "1"):
        verdict, kept = tried(kept, right=False, now=NOW)
        assert (verdict.answer["result"], verdict.answer["retry_times_left"]) == ("passwordFailed", left)
    verdict, kept = tried(kept, right=False, now=NOW)
    assert (verdict.answer["result"], verdict.answer["lock_time_left"]) == ("locked", "5")
    verdict, kept = tried(kept, right=True, now=NOW + 4 * MINUTE + 1)
    assert (verdict.right, verdict.answer["lock_time_left"]) == (False, "1")
    verdict, kept = tried(kept, right=True, now=NOW + 5 * MINUTE)
    assert (verdict.right, verdict.answer["result"]) == (True, "success")
    assert (kept.wrong_passwords, kept.locked_until) == (0, None)
    assert LOCK_AFTER == 5


def test_the_right_password_forgives_the_wrong_ones() -> None:
    _, kept = tried(account("ann", wrong_passwords=4), right=True, now=NOW)
    verdict, _ = tried(kept, right=False, now=NOW)
    assert verdict.answer["retry_times_left"] == "4"
