"""Caps in the kernel, in a network of the test's own, so that the machine's is left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from cacheyard.engine import tc

PRELUDE = """
import subprocess, sys
from pathlib import Path
from cacheyard.domain.caps import Cap
from cacheyard.engine import tc
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
root = Path(sys.argv[1])
first, second = root / "first", root / "second"
first.mkdir(); second.mkdir()
FIRST, SECOND = "127.64.0.0/16", "127.65.0.0/16"
def caps(net, count, mbit=40):
    return [Cap((f"127.{net}.0.{n}", f"127.{net}.1.{n}"), mbit + n) for n in range(1, count + 1)]
def mbits():
    return sorted(tc._classes().values())
"""


def inside(tmp_path: Path, text: str) -> None:
    """Run it in a network namespace."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", PRELUDE + text, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


pytestmark = pytest.mark.skipif(tc.fault() is not None, reason=f"nothing can be capped here: {tc.fault()}")


def test_two_yards_share_a_machine_and_the_last_one_leaves_nothing(tmp_path: Path) -> None:
    inside(
        tmp_path,
        """
assert tc.apply(first, FIRST, caps(64, 30)) and not tc.apply(first, FIRST, caps(64, 30))
assert tc.apply(second, SECOND, caps(65, 2, 9998))
assert len(tc._classes()) == 64 and mbits()[-2:] == [10000, 10000]
more = caps(64, 30) + [Cap(("127.64.2.1",), 77)]
more[3] = Cap((*more[3].addresses, "127.64.2.2"), 1234)
assert tc.apply(first, FIRST, more) and not tc.apply(first, FIRST, more)
assert len(tc._classes()) == 66 and mbits().count(1234) == mbits().count(77) == 2
assert not tc.apply(second, SECOND, caps(65, 2, 9998))
assert tc.remove(first) and not tc.remove(first)
assert mbits() == [9999, 9999, 10000, 10000]
assert tc.remove(second)
assert not tc._is_ours() and not tc._maps()
""",
    )


def test_what_a_crash_or_somebody_else_left_is_made_whole(tmp_path: Path) -> None:
    inside(
        tmp_path,
        """
def table_gone():
    tc._run("nft", "delete", "table", "ip", tc.table_of(first))
def classes_gone():
    tc._run("tc", "qdisc", "del", "dev", "lo", "root")
def one_class_gone():
    tc._run("tc", "class", "del", "dev", "lo", "classid", f"ca:{min(tc._classes()):x}")
def another_rate():
    tc._batch(iter([tc._class(min(tc._classes()), 9)]))
def a_class_of_nobody():
    tc._batch(iter([tc._class(999, 9)]))
for harm in (table_gone, classes_gone, one_class_gone, another_rate, a_class_of_nobody):
    tc.apply(first, FIRST, caps(64, 3))
    harm()
    assert tc.apply(first, FIRST, caps(64, 3)), harm
    assert mbits() == [41, 41, 42, 42, 43, 43], harm
    assert not tc.apply(first, FIRST, caps(64, 3)), harm
table_gone()
tc.remove(first)
assert not tc._is_ours()
""",
    )


def test_caps_of_a_yard_whose_directory_is_gone_are_removed_by_the_next(tmp_path: Path) -> None:
    inside(
        tmp_path,
        """
tc.apply(first, FIRST, caps(64, 3))
first.rmdir()
tc.apply(second, SECOND, caps(65, 1))
assert mbits() == [41, 41]
assert list(tc._maps()) == [tc.table_of(second)]
""",
    )


def test_somebody_elses_queueing_discipline_is_left_alone_and_told_of(tmp_path: Path) -> None:
    inside(
        tmp_path,
        """
tc._run("tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "9ms")
assert "tbf" in tc.fault()
try:
    tc.apply(first, FIRST, caps(64, 1))
except tc.CapError as error:
    assert "tbf" in str(error)
else:
    raise AssertionError
assert not tc._maps()
""",
    )
