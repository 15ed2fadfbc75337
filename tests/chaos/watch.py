"""Reads from servers all the time, in a process of its own: nothing that the test does slows it down.

`Watch` starts it; run as a script, it reads targets from its first argument and goes on until its
standard input ends, then tells what it saw as JSON. Each target is asked PING and GET every few
milliseconds on one connection. An answer's time is what is left when the time is taken off that the
kernel made this thread or the server wait for a processor: machines that test are busy.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAUSE = 0.005
GAP_MS = 200.0
PATIENCE = 10.0  # seconds; a server that is silent for longer is given up


class Watch:
    """Watches the targets from its making until `seen`."""

    def __init__(self, targets: Sequence[dict[str, Any]]) -> None:
        """A target has name, ip, port, password ("" for none), key and value."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(list(targets))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def seen(self) -> dict[str, dict[str, Any]]:
        """By name: how many `asks`, the `longest` in ms, the `gaps` over 200 ms, and each `run_id`."""
        told, _ = self._process.communicate(timeout=30)
        return {str(name): dict(told) for name, told in json.loads(told).items()}

    def close(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()


class Target:
    """One server, asked by one thread."""

    def __init__(self, name: str, ip: str, port: int, password: str, key: str, value: str) -> None:
        self.asks = 0
        self.longest = 0.0
        self.gaps: list[str] = []
        self.run_ids: list[str] = []
        self.name = name
        self._address = (ip, port)
        self._password = password
        self._question = f"PING\r\nGET {key}\r\n".encode()
        self._wanted = f"+PONG\r\n${len(value)}\r\n{value}\r\n".encode()
        self._pid = 0

    def told(self) -> dict[str, Any]:
        """What was seen."""
        return {"asks": self.asks, "longest": self.longest, "gaps": self.gaps, "run_ids": self.run_ids}

    def run(self, ended: threading.Event) -> None:
        """Ask until `ended`."""
        while not ended.is_set():
            try:
                with socket.create_connection(self._address, timeout=PATIENCE) as connection:
                    self._meet(connection)
                    self._ask_on(connection, ended)
            except OSError as error:
                self._note(f"{type(error).__name__}: {error}")
                ended.wait(0.05)

    def _meet(self, connection: socket.socket) -> None:
        if self._password:
            connection.sendall(f"AUTH {self._password}\r\n".encode())
            connection.recv(100)
        connection.sendall(b"INFO server\r\n")
        text = b""
        while b"\r\nlistener" not in text and b"io_threads_active" not in text:
            part = connection.recv(65536)
            if not part:
                raise OSError("closed")
            text += part
        fields = dict(line.partition(":")[::2] for line in text.decode().split("\r\n"))
        self._pid = int(fields["process_id"])
        if fields["run_id"] not in self.run_ids:
            self.run_ids.append(fields["run_id"])

    def _ask_on(self, connection: socket.socket, ended: threading.Event) -> None:
        while not ended.is_set():
            waited, began = self._waited(), time.monotonic()
            connection.sendall(self._question)
            answer = b""
            while len(answer) < len(self._wanted):
                part = connection.recv(4096)
                if not part:
                    raise OSError("closed")
                answer += part
            took = 1000 * (time.monotonic() - began)
            if took > 50:
                took -= 1000 * (self._waited() - waited)
            self.asks += 1
            self.longest = max(self.longest, took)
            if answer != self._wanted:
                self._note(f"answered {answer!r}")
            elif took > GAP_MS:
                self._note(f"answered after {took:.0f} ms")
            time.sleep(PAUSE)

    def _waited(self) -> float:
        """Seconds that this thread and the server have waited for a processor."""
        total = 0
        for path in (
            f"/proc/self/task/{threading.get_native_id()}/schedstat",
            f"/proc/{self._pid}/schedstat",
        ):
            try:
                total += int(Path(path).read_text().split()[1])
            except (OSError, IndexError):
                continue
        return total / 1e9

    def _note(self, what: str) -> None:
        self.gaps.append(f"{time.strftime('%H:%M:%S')} {what}")


def main() -> None:
    """Watch until standard input ends."""
    ended = threading.Event()
    targets = [Target(**target) for target in json.loads(sys.argv[1])]
    threads = [threading.Thread(target=target.run, args=(ended,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join(PATIENCE)
    sys.stdout.write(json.dumps({target.name: target.told() for target in targets}))


if __name__ == "__main__":
    main()
