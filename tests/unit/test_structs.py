"""Threads that convert to the same types at once do not end the process."""

import subprocess
import sys

# In a process of its own, as it would end this one; threads change as often as they can.
_PROGRAM = """
import sys, threading, msgspec
from typing import Optional
from cacheyard import structs

fields = [(f"f{i}", "list[Optional[int]] | None") for i in range(40)]
kinds = [msgspec.defstruct(f"Kind{n}", fields, namespace={"__module__": "__main__"}) for n in range(300)]
if "prepared" in sys.argv:
    structs.prepare()
sys.setswitchinterval(1e-6)

def convert(kind, together):
    together.wait()
    msgspec.convert({f"f{i}": [1] for i in range(40)}, kind)

for kind in kinds:
    together = threading.Barrier(4)
    threads = [threading.Thread(target=convert, args=(kind, together)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_types_that_were_prepared_can_be_converted_to_by_several_threads_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, "prepared"], timeout=120, check=False)
    assert done.returncode == 0
