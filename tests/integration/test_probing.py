"""Health for a kubelet, and what `edge-orchestrator probe` finds at an address."""

import asyncio
import json
import socket
from pathlib import Path

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from devcluster.ports import free_port
from orchestrator.config import parse_address
from orchestrator.identity.authority import create_root
from orchestrator.listeners import CannotListen
from orchestrator.main import main
from orchestrator.probes import LIVENESS, READINESS, Probes
from orchestrator.probing import NotServed, check_health, check_refusal, server_identity
from orchestrator.server import Orchestrator
from tests.integration.orchestrator_rig import Rig, config_for, running

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(address: str, service: str) -> int:
    async with aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status


async def test_health_without_tls_follows_the_process(tmp_path: Path) -> None:
    config = config_for(tmp_path, health_listen=f"127.0.0.1:{free_port()}")
    orchestrator = Orchestrator(config)
    await orchestrator.start()
    try:
        for service in ("", LIVENESS, READINESS):
            assert await health(config.health_listen, service) == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            await health(config.health_listen, "polder.v1.OperatorService")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await orchestrator.stop()
    with pytest.raises(grpc.RpcError):
        await health(config.health_listen, LIVENESS)


async def test_a_member_that_waits_for_its_store_is_alive_and_not_ready(tmp_path: Path) -> None:
    """A kubelet must not restart it for that, and nobody must be sent to it."""
    create_root(tmp_path / "ca", "polder.internal", 1_790_000_000.0)
    assert main(["ca", "init", f"--dir={tmp_path}/ca"]) == 0
    assert main(["ca", "etcd", f"--dir={tmp_path}/ca", "--name=polder", "--client"]) == 0
    tls = tmp_path / "ca" / "etcd" / "polder"
    config = config_for(
        tmp_path,
        ca_dir=str(tmp_path / "ca"),
        health_listen=f"127.0.0.1:{free_port()}",
        store=f"etcd:127.0.0.1:{free_port()}",  # nobody is there
        etcd_ca=str(tls / "ca.crt"),
        etcd_cert=str(tls / "etcd.crt"),
        etcd_key=str(tls / "etcd.key"),
    )
    starting = asyncio.create_task(Orchestrator(config).start())
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await health(config.health_listen, LIVENESS) == SERVING
                    break
                except grpc.RpcError:
                    await asyncio.sleep(0.05)
        assert await health(config.health_listen, READINESS) == NOT_SERVING
        assert not starting.done()
    finally:
        starting.cancel()
        await asyncio.wait([starting])


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotListen, match=address):
            Probes(address)


async def test_probe_finds_an_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(tmp_path) as rig:
        arguments = arguments_for(rig, tmp_path / "data" / "ca" / "root.crt")
        assert await asyncio.to_thread(main, arguments) == 0
        said = capsys.readouterr().out
        assert "/region/local/orchestrator/" in said
        assert said.count("ok  ") == 3


async def test_probe_refuses_a_stranger(tmp_path: Path) -> None:
    create_root(tmp_path / "other", "polder.internal", 1_790_000_000.0)
    async with running(tmp_path) as rig:
        arguments = arguments_for(rig, tmp_path / "other" / "root.crt")
        assert await asyncio.to_thread(main, arguments) == 1
        host, port = parse_address("join_listen", rig.config.join_listen)
        with pytest.raises(NotServed, match=r"no orchestrator of other\.example"):
            await asyncio.to_thread(server_identity, host, port, rig.roots_pem, "other.example")


async def test_probe_says_who_lets_strangers_in(tmp_path: Path) -> None:
    """The join port lets everybody in, as the mTLS port would behind something that ends TLS."""
    async with running(tmp_path) as rig:
        host, port = parse_address("join_listen", rig.config.join_listen)
        with pytest.raises(NotServed, match="let in who shows no certificate"):
            await asyncio.to_thread(check_refusal, host, port, rig.roots_pem)


async def test_probe_says_when_nobody_is_there(tmp_path: Path) -> None:
    async with running(tmp_path) as rig:
        with pytest.raises(NotServed, match="cannot be reached"):
            server_identity("127.0.0.1", free_port(), rig.roots_pem, "polder.internal")
        with pytest.raises(NotServed, match="does not answer"):
            await asyncio.to_thread(check_health, f"127.0.0.1:{free_port()}", rig.roots_pem)


def test_admin_context_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["operator", "admin-context", f"--data-dir={tmp_path}/data"]
    assert main(command) == 1
    assert "another member made the first admin" in capsys.readouterr().err
    assert main(["serve", "--init", f"--data-dir={tmp_path}/data"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out == (tmp_path / "data" / "admin.yaml").read_text()


def test_the_admins_context_is_printed_with_todays_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A load balancer's are known after the first start, when the context is there already."""
    data = f"--data-dir={tmp_path}/data"
    assert main(["serve", "--init", data, "--advertise=polder.edge.svc.cluster.local:7443"]) == 0
    capsys.readouterr()
    assert main(["operator", "admin-context", data, "--advertise=192.0.2.10:7443"]) == 0
    found = json.loads(capsys.readouterr().out)
    made = json.loads((tmp_path / "data" / "admin.yaml").read_text())
    (cluster,) = (entry["cluster"] for entry in found["clusters"])
    assert cluster.pop("endpoints") == ["192.0.2.10:7443"]
    (before,) = (entry["cluster"] for entry in made["clusters"])
    assert before.pop("endpoints") == ["polder.edge.svc.cluster.local:7443"]
    assert found == made, "all else is the same"


def test_a_new_admins_context_can_be_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an image without a shell nothing else could bring it out."""
    data = f"--data-dir={tmp_path}/data"
    assert main(["serve", "--init", data]) == 0
    capsys.readouterr()
    assert main(["operator", "create", "ada", "--role", "admin", "--out", "-", data]) == 0
    context = json.loads(capsys.readouterr().out)
    assert context["currentContext"] == "ada@polder"
    assert not Path("-").exists()


def arguments_for(rig: Rig, root: Path) -> list[str]:
    return [
        "probe",
        f"--endpoint={rig.config.listen}",
        f"--join-endpoint={rig.config.join_listen}",
        f"--root={root}",
        "--trust-domain=polder.internal",
    ]
