"""`cacheyard doctor` says what is there, what is not, and what to do about it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cacheyard.cli import doctor
from cacheyard.domain.engines import Engine
from cacheyard.engine import find

NEW = Engine(name="redis", version=(7, 0, 15), binary="/usr/bin/redis-server", tls=True)
OLD = Engine(name="redis", version=(6, 2, 14), binary="/opt/redis-server", tls=False)
LACK = find.Ability(name="nft", found=False, detail="not found", without="Whitelists are refused.")


def machine(patch: pytest.MonkeyPatch, *engines: Engine) -> None:
    patch.setattr(find, "engines", lambda: list(engines))
    patch.setattr(find, "abilities", lambda: [LACK])


def examined(capsys: pytest.CaptureFixture[str], data: Path, code: int) -> Any:
    assert doctor.show(json=True, data=data) == code
    return msgspec.json.decode(capsys.readouterr().out)


def test_each_engine_says_which_versions_it_serves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine(monkeypatch, OLD, NEW)
    told = examined(capsys, tmp_path / "new", 0)
    assert [row["serves"] for row in told["engines"]] == [["4.0", "5.0", "6.0"], ["7.0"]]
    assert told["abilities"][0]["get"] == "apt install nftables"
    assert {row["name"] for row in told["machine"]} >= {
        "data directory",
        "memory",
        "open files",
        "addresses",
    }


def test_without_an_engine_it_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine(monkeypatch)
    assert examined(capsys, tmp_path, 1)["able"] is False
    assert doctor.show(json=False, data=tmp_path) == 1
    shown = capsys.readouterr()
    assert "nftables" in shown.out
    assert "nothing can be created" in shown.err


def test_a_data_directory_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, NEW)
    told = examined(capsys, Path("/proc/no/such"), 0)
    [row] = [row for row in told["machine"] if row["name"] == "data directory"]
    assert row["good"] is False


def test_everything_that_can_be_missing_has_a_way_to_get_it() -> None:
    lacking = [*find._of_servers([]), *find._of_servers([OLD]), find._of_proxy({"CACHEYARD_PROXY": ""})]
    names = {row.name for row in lacking if not row.found} | {"memcached", "nft", "tc"}
    assert names <= doctor.GET.keys()


def test_the_native_proxy_is_found_asked_and_missed(tmp_path: Path) -> None:
    def program(says: str) -> dict[str, str]:
        made = tmp_path / "cacheyard-proxy"
        made.write_text(f"#!/bin/sh\necho {says}\n")
        made.chmod(0o700)
        return {"CACHEYARD_PROXY": str(made), "PATH": ""}

    there = find._of_proxy(program("cacheyard-proxy 1.2.3"))
    assert (there.found, there.detail) == (True, f"1.2.3 at {tmp_path}/cacheyard-proxy")
    other = find._of_proxy(program("something else"))
    assert not other.found
    assert "does not run here" in other.detail
    missing = find._of_proxy({"CACHEYARD_PROXY": "", "PATH": ""})
    assert (missing.found, missing.detail) == (
        False,
        "not built, and there is no cargo to build it with",
    )
    assert "ha_rw_split" in missing.without
    (tmp_path / "cargo").touch(mode=0o700)
    assert find._of_proxy({"CACHEYARD_PROXY": "", "PATH": str(tmp_path)}).detail == "not built"
