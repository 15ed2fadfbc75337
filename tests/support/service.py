"""cacheyard as its users have it: the real command in a process of its own, and the clients for it.

Every answer that comes through these clients is held against the contract (`support.answers`).
"""

import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
from huaweicloudsdkcore.auth import credentials
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.http.http_handler import HttpHandler
from huaweicloudsdkcore.signer.signer import Signer
from huaweicloudsdkdcs.v2 import DcsClient
from support.answers import check_answer
from support.waiting import until

DISK = Path("/var/tmp")  # noqa: S108 - not a tmpfs, whatever /tmp is
START_SECONDS = 30.0


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What `cacheyard up --json` says when it is ready."""

    endpoint: str
    region: str
    cidr: str
    project_id: str
    domain_id: str
    domain_name: str
    user_id: str
    user_name: str
    password: str
    access_key: str
    secret_key: str
    vpc_id: str
    subnet_id: str
    security_group_id: str
    az_codes: list[str]
    ca_file: str = ""


class BasicCredentials(credentials.BasicCredentials):  # type: ignore[misc]
    """A token instead of a signature; the SDK takes credentials by the name of their class."""

    token = ""

    def sign_request(self, request: Any) -> Any:
        Signer.process_request_uri(request)
        request.header_params["X-Auth-Token"] = self.token
        return request


class Service:
    """`cacheyard up` on a data directory of its own. Make it in a `with`: nothing of it is left behind."""

    def __init__(self, **environment: str) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="cacheyard-test-", dir=DISK)) / "data"
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._token = ""
        self._port = 0
        self.facts = Facts(**self.start())
        self._http = httpx.Client(base_url=self.facts.endpoint, timeout=30.0, verify=self.trust())

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the process -----------------------------------------------------------------------------

    def start(self) -> dict[str, Any]:
        """Start the command; what it says when it is ready. A later start takes the port of the first."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command("up"), "--port", str(self._port), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environment},
            )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            tail = self.log()[-3000:]
            self.close()
            raise AssertionError(f"cacheyard was not ready in {START_SECONDS:g} s; its log ends:\n{tail}")
        told: dict[str, Any] = msgspec.json.decode(line)
        self._port = int(told["endpoint"].rpartition(":")[2])
        return told

    def kill(self) -> None:
        """`kill -9` the service; its caches go on."""
        self._end(signal.SIGKILL)

    def restart(self, **environment: str) -> None:
        """End the service, if it runs, and start it again; with other settings, if there are any."""
        self._environment.update(environment)
        self._end(signal.SIGTERM)
        self.start()

    def down(self, *, instances: bool = False) -> str:
        """`cacheyard down`; what it printed."""
        done = subprocess.run(
            [*self._command("down"), *(["--instances"] if instances else [])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        self._end(signal.SIGTERM)
        return done.stdout

    def close(self) -> None:
        """End the service and every cache, see that no process is left, and remove the directory."""
        try:
            if hasattr(self, "_http"):
                self._http.close()
            if (self.data / "cacheyard.sqlite").exists():
                self.down(instances=True)
            self._end(signal.SIGKILL)
            left = self.processes()
            assert not left, f"these outlive `down --instances`: {left}"
        finally:
            self._end(signal.SIGKILL)
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            until(lambda: not self.processes(), seconds=10, what="all processes to be gone")
            shutil.rmtree(self.data.parent)

    def processes(self) -> dict[int, str]:
        """Every living process that has to do with the data directory, but this one: pid and command."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            if int(process.name) == os.getpid():
                continue
            try:
                command = (
                    process.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                places = [str(process.joinpath("cwd").readlink()), command]
                descriptors = list(process.joinpath("fd").iterdir())
            except OSError:  # it has just ended, or is another user's
                continue
            for descriptor in descriptors:
                with suppress(OSError):  # it has just been closed: the process is still there
                    places.append(str(descriptor.readlink()))
            if any(str(self.data.parent) in place for place in places):
                found[int(process.name)] = command
        return found

    @property
    def pid(self) -> int:
        """Of the service."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the service logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_of(self, request_id: str) -> str:
        """What the service logged about a request, the story of its failure unfolded."""
        lines = [line for line in self.log().splitlines() if request_id in line]
        return "\n".join(lines).replace("\\n", "\n")

    def command(self, *arguments: str) -> str:
        """Run another `cacheyard` command on the data directory; what it printed."""
        done = subprocess.run(
            self._command(*arguments), capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    @property
    def _log(self) -> Path:
        return self.data.parent / "log"

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cacheyard", *arguments, "--data", str(self.data)]

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError("cacheyard did not end on SIGTERM") from None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    # --- the clients -----------------------------------------------------------------------------

    def token(self) -> str:
        """A token of the first user on the first project."""
        if not self._token:
            self._token = self.new_token(self.facts.user_name, self.facts.password, self.facts.project_id)
        return self._token

    def new_token(self, user: str, password: str, project_id: str) -> str:
        """A token for a name and a password."""
        identity = {
            "methods": ["password"],
            "password": {
                "user": {"name": user, "password": password, "domain": {"name": self.facts.domain_name}}
            },
        }
        body = {"auth": {"identity": identity, "scope": {"project": {"id": project_id}}}}
        answer = self.http("POST", "/v3/auth/tokens", json=body, token="")
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def http(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """A request as it is, by token; `{p}` in `path` is the project. No token with `token=""`."""
        shown = self.token() if token is None else token
        auth = {"X-Auth-Token": shown} if shown else {}
        where = path.replace("{p}", self.facts.project_id)
        answer: httpx.Response = self._http.request(
            method, where, headers={**auth, **(headers or {})}, **more
        )
        assert answer.status_code != 500, self.log_of(answer.headers["X-Request-Id"])
        check_answer(method, answer.request.url.raw_path.decode(), answer.status_code, answer.content)
        return answer

    @property
    def ca_file(self) -> str | None:
        """The certificate of the authority to trust; None: those of this machine, or there is no TLS."""
        return self.facts.ca_file or self._environment.get("CACHEYARD_CA")

    def trust(self) -> ssl.SSLContext:
        """Whom clients trust: the authority that the service names, and else those of this machine."""
        return ssl.create_default_context(cafile=self.ca_file)

    def sdk(self, access: str = "", secret: str = "", project_id: str = "") -> Any:
        """The official client, by access key."""
        who = credentials.BasicCredentials(
            access or self.facts.access_key,
            secret or self.facts.secret_key,
            project_id or self.facts.project_id,
        )
        return self._client(who)

    def sdk_token(self, token: str = "", project_id: str = "") -> Any:
        """The official client, by token."""
        who = BasicCredentials("by", "token", project_id or self.facts.project_id)
        who.token = token or self.token()
        return self._client(who)

    def _client(self, who: Any) -> Any:
        handler = HttpHandler().add_response_handler(_check)
        builder = DcsClient.new_builder().with_credentials(who).with_endpoint(self.facts.endpoint)
        config = HttpConfig.get_default_config()
        config.ssl_ca_cert = self.ca_file
        return builder.with_http_handler(handler).with_http_config(config).build()


def _check(*, response: Any, **_: Any) -> None:
    check_answer(response.request.method, response.request.path_url, response.status_code, response.content)
