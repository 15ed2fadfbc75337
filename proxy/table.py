#!/usr/bin/env python3
"""Writes src/table.rs from a real server's COMMAND: python3 table.py [redis-server] > src/table.rs"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = [
    *("write", "readonly", "denyoom", "admin", "pubsub", "noscript", "blocking", "loading", "stale"),
    *("fast", "no_auth", "may_replicate", "movablekeys", "no_multi"),
]


def commands(server: str) -> tuple[str, list]:
    with tempfile.TemporaryDirectory() as place:
        sock = Path(place) / "s"
        argv = [
            server,
            "--port",
            "0",
            "--unixsocket",
            str(sock),
            "--save",
            "",
            "--dir",
            place,
            "--logfile",
            "log",
        ]
        process = subprocess.Popen(argv)
        try:
            while not sock.exists():
                time.sleep(0.02)
            ask = ["redis-cli", "-s", str(sock), "-3"]
            listing = json.loads(subprocess.check_output([*ask, "--json", "COMMAND"]))
            info = subprocess.check_output([*ask, "INFO", "server"], text=True)
            version = next(
                line.split(":")[1].strip() for line in info.splitlines() if line.startswith("redis_version:")
            )
            return version, listing
        finally:
            process.terminate()
            process.wait()


def spec(key: dict) -> str | None:
    begin, find = key["begin_search"], key["find_keys"]
    if "unknown" in (begin["type"], find["type"]):
        return None
    b, f = begin["spec"], find["spec"]
    if begin["type"] == "index":
        start = f"Begin::Index({b['index']})"
    else:
        start = f"Begin::Keyword({json.dumps(b['keyword'])}, {b['startfrom']})"
    if find["type"] == "range":
        span = f"Find::Range {{ last: {f['lastkey']}, step: {f['keystep']}, limit: {f['limit']} }}"
    else:
        span = f"Find::Number {{ at: {f['keynumidx']}, first: {f['firstkey']}, step: {f['keystep']} }}"
    return f"Keys {{ begin: {start}, find: {span} }}"


# Newer clients send these at once, and the proxy answers them itself.
EXTRA = {
    "client": [
        ["client|setinfo", 4, ["noscript", "loading", "stale"], 0, 0, 0, [], [], [], []],
        ["client|no-touch", 3, ["noscript", "loading", "stale"], 0, 0, 0, [], [], [], []],
    ]
}

# The proxy's own: where the servers are that an address in SCAN and others may name.
_OWN_FLAGS = ["noscript", "loading", "stale"]
OWN = [
    [
        *("icluster", -2, _OWN_FLAGS, 0, 0, 0, [], [], []),
        [["icluster|nodes", 2, _OWN_FLAGS, 0, 0, 0, [], [], [], []]],
    ]
]

# These take the address of a shard at the end here.
ADDRESSED = {
    "monitor": -1,
    "memory|doctor": -2,
    "memory|malloc-stats": -2,
    "memory|purge": -2,
    "memory|stats": -2,
}

numbers = itertools.count()


def command(entry: list) -> str:
    own = next(numbers)
    name, arity, flags, _, _, _, _, _, keys, subs = entry
    arity = ADDRESSED.get(name, arity)
    marks = " | ".join(f.upper() for f in FLAGS if f in flags) or "0"
    specs = ", ".join(filter(None, map(spec, keys)))
    inner = ", ".join(command(sub) for sub in sorted(subs + EXTRA.get(name, []), key=lambda s: s[0]))
    return (
        f"Cmd {{ id: {own}, name: {json.dumps(name)}, arity: {arity}, flags: {marks}, "
        f"keys: &[{specs}], subs: &[{inner}] }}"
    )


def main() -> None:
    version, listing = commands(sys.argv[1] if len(sys.argv) > 1 else "redis-server")
    lines = [command(entry) for entry in sorted(listing + OWN, key=lambda e: e[0])]
    print(
        f"//! What each command is, as redis-server {version} says it. "
        "Written by table.py; not edited by hand.\n"
    )
    print("use crate::command::{Begin, Cmd, Find, Keys};\n")
    for bit, flag in enumerate(FLAGS):
        print(f"pub const {flag.upper()}: u32 = 1 << {bit};")
    print(f"\n/// How many ids there are.\npub const COUNT: usize = {next(numbers)};\n")
    print("#[rustfmt::skip]\npub static COMMANDS: &[Cmd] = &[")
    for line in lines:
        print(f"    {line},")
    print("];")


main()
