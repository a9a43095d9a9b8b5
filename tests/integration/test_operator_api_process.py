"""The real process: first start, second start, kill -9, shutdown, metrics, the offline commands."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc import aio

from devcluster.ports import free_port
from orchestrator.identity.authority import create_region, create_root
from orchestrator.identity.member import SERVER_NAME
from polder.v1 import operator_pb2, operator_pb2_grpc
from tests.integration.orchestrator_rig import (
    apply_request,
    read_context,
    ref,
    until,
    workload,
)

COMMAND = [sys.executable, "-m", "orchestrator"]


class Process:
    """`edge-orchestrator serve` on free ports."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.data = folder / "data"
        self.listen = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.log = folder / "log"
        self._arguments = [
            *COMMAND,
            "serve",
            f"--data-dir={self.data}",
            f"--listen={self.listen}",
            f"--join-listen=127.0.0.1:{free_port()}",
            f"--metrics-listen={self.http}",
            *more,
        ]
        self._running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(self._arguments, stderr=output)
        deadline = time.monotonic() + 30
        while self.status("/readyz") != 200:
            assert self._running.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def kill(self, number: int) -> int:
        assert self._running is not None
        self._running.send_signal(number)
        return self._running.wait(20)

    def stop(self) -> None:
        if self._running is not None and self._running.poll() is None:
            self.kill(signal.SIGTERM)

    def channel(self, context: Path | None = None) -> aio.Channel:
        path = context or self.data / "admin.yaml"
        body = json.loads(path.read_text())
        roots = base64.b64decode(body["clusters"][0]["cluster"]["certificateAuthorityData"])
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        credentials = read_context(path).channel_credentials(roots)
        return aio.secure_channel(self.listen, credentials, options)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    made.start()
    yield made
    made.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


async def test_kill_9_keeps_every_acknowledged_apply(process: Process) -> None:
    acknowledged: list[str] = []
    for round_number in range(3):
        async with process.channel() as channel:
            stub = operator_pb2_grpc.OperatorServiceStub(channel)

            async def client(number: int, stub: object = stub, r: int = round_number) -> None:
                for turn in range(10_000):
                    name = f"w-{r}-{number}-{turn}"
                    try:
                        await stub.Apply(apply_request(workload(name, replicas=0)))  # type: ignore[attr-defined]
                    except aio.AioRpcError:
                        return
                    acknowledged.append(name)

            clients = [asyncio.create_task(client(number)) for number in range(16)]
            wanted = len(acknowledged) + 200
            await until(lambda n=wanted: len(acknowledged) >= n, "applies flow", 60)  # type: ignore[misc]
            assert await asyncio.to_thread(process.kill, signal.SIGKILL) == -signal.SIGKILL
            await asyncio.gather(*clients)
        await asyncio.to_thread(process.start)
    async with process.channel() as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        found: set[str] = set()
        token = ""
        while True:
            request = operator_pb2.ListRequest(kind="Workload", continue_token=token)
            page = await stub.List(request)
            found |= {resource.metadata.name for resource in page.resources}
            token = page.continue_token
            if not token:
                break
    assert len(acknowledged) >= 600
    assert not set(acknowledged) - found


def test_the_first_start_leaves_private_files_and_the_second_reuses_them(
    process: Process,
) -> None:
    context, root = process.data / "admin.yaml", process.data / "ca" / "root.crt"
    for path in (context, process.data / "ca" / "root.key", process.data / "polder.db"):
        assert path.stat().st_mode & 0o077 == 0, path
    before = (context.read_text(), root.read_text())
    assert process.kill(signal.SIGTERM) == 0
    process.start()
    assert (context.read_text(), root.read_text()) == before


def test_the_root_key_can_be_taken_away(process: Process) -> None:
    process.stop()
    (process.data / "ca" / "root.key").unlink()
    process.start()
    assert process.status("/readyz") == 200


def test_another_ca_is_refused_with_the_reason(process: Process, tmp_path: Path) -> None:
    process.stop()
    other = tmp_path / "other"
    create_root(other, "polder.internal", time.time())
    create_region(other, "local", time.time())
    arguments = ("serve", f"--data-dir={process.data}", f"--ca-dir={other}")
    failed = run(*arguments)
    assert failed.returncode == 1 and "belongs to another CA" in failed.stderr
    failed = run("serve", f"--data-dir={process.data}", "--trust-domain=else.where")
    assert failed.returncode == 1 and "trust domain" in failed.stderr


def test_two_processes_on_one_data_directory_or_port(process: Process, tmp_path: Path) -> None:
    failed = run("serve", f"--data-dir={process.data}")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    failed = run("serve", f"--data-dir={tmp_path / 'two'}", f"--listen={process.listen}")
    assert failed.returncode == 1 and "cannot listen" in failed.stderr


async def test_sigterm_ends_watches_and_is_quick(process: Process) -> None:
    async with process.channel() as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        watch = stub.Watch(operator_pb2.WatchRequest(kind="Node"))
        await watch.read()
        started = time.monotonic()
        assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
        assert time.monotonic() - started < 5
        with pytest.raises(aio.AioRpcError) as caught:
            await watch.read()
            await watch.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_metrics_and_health(process: Process) -> None:
    assert process.status("/healthz") == 200
    assert process.status("/nothing") == 404
    with urllib.request.urlopen(f"http://{process.http}/metrics") as response:
        text = response.read().decode()
    for name in ("polder_sessions", "polder_store_commit_seconds_bucket", "polder_build_info"):
        assert f"\n{name}" in text
    assert "process_resident_memory_bytes" in text


async def test_an_operator_made_offline_comes_in(process: Process, tmp_path: Path) -> None:
    process.stop()
    out = tmp_path / "vera.yaml"
    arguments = ("operator", "create", "vera", "--role=viewer:default", f"--out={out}")
    done = await asyncio.to_thread(
        run, *arguments, f"--data-dir={process.data}", f"--listen={process.listen}"
    )
    assert done.returncode == 0, done.stderr
    assert out.stat().st_mode & 0o077 == 0
    await asyncio.to_thread(process.start)
    async with process.channel(out) as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        answer = await stub.WhoAmI(operator_pb2.WhoAmIRequest())
        assert list(answer.roles) == ["viewer:default"]
        delete = operator_pb2.DeleteRequest(ref=ref("Workload", "x", "default"))
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Delete(delete)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_lost_database_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    assert run("serve", f"--data-dir={tmp_path}", "--init").returncode == 0
    admin = (tmp_path / "admin.yaml").read_bytes()
    (tmp_path / "polder.db").unlink()
    failed = run("serve", f"--data-dir={tmp_path}", "--init")
    assert failed.returncode == 1 and "was the database lost?" in failed.stderr
    assert not (tmp_path / "polder.db").exists()
    assert (tmp_path / "admin.yaml").read_bytes() == admin
    (tmp_path / "admin.yaml").rename(tmp_path / "old.yaml")
    assert run("serve", f"--data-dir={tmp_path}", "--init").returncode == 0


def test_ca_init_and_show(tmp_path: Path) -> None:
    made = run("ca", "init", f"--dir={tmp_path}", "--trust-domain=t.example", "--region=eu")
    assert made.returncode == 0, made.stderr
    shown = json.loads(run("ca", "show", f"--dir={tmp_path}").stdout)
    assert shown["rootKey"] == "here" and list(shown["regions"]) == ["eu"]
    again = run("ca", "init", f"--dir={tmp_path}", "--region=eu")
    assert again.returncode == 0 and "eu is renewed" in again.stdout
    other = run("ca", "init", f"--dir={tmp_path}", "--region=eu", "--trust-domain=other.example")
    assert other.returncode == 1 and "has the root of t.example" in other.stderr
    (tmp_path / "root.key").unlink()
    failed = run("ca", "init", f"--dir={tmp_path}", "--region=west")
    assert failed.returncode == 1 and "root.key" in failed.stderr


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('listne = "x"', "listen"),
        ('listen = "nowhere"', "not an address"),
        ("listen = 7", "expected text"),
        ("= =", "not TOML"),
        ('node_certificate_life = "-1s"', "negative"),
        ('silent_after = "30s"\nlost_after = "10s"', "lost_after"),
        ('silent_after = "5s"', "longer than heartbeat_interval (5s)"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    failed = run("serve", f"--config={path}")
    assert failed.returncode == 1 and word in failed.stderr and str(path) in failed.stderr


def test_version() -> None:
    assert run("version").stdout.strip()
