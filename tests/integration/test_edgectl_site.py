"""edgectl against whoever answers at a site's addresses: proven and entered, or told nothing."""

import base64
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from edgectl import config_file
from edgectl.__main__ import main
from edgectl.config import context_document
from polder.local_access import Grant, entry
from polder.local_proofs import sign_grant, verify_operator
from polder.v1 import agent_pb2, local_pb2
from tests.integration.edgectl_server import Authority
from tests.integration.local_server import DOMAIN, LocalNode, now_ms

Node = Callable[..., LocalNode]


class Operator:
    """Runs edgectl in this process, with a context of its own."""

    def __init__(self, authority: Authority, folder: Path, capfd: Any) -> None:
        self.authority = authority
        self.folder = folder
        self.capfd = capfd
        self.certificate, key = authority.issue(f"spiffe://{DOMAIN}/operator/ann", [])
        document = context_document(
            "test",
            cluster={
                "endpoints": ["127.0.0.1:1"],
                "certificateAuthorityData": base64.b64encode(authority.pem).decode(),
                "trustDomain": DOMAIN,
            },
            certificate_pem=self.certificate,
            key_pem=key,
            namespace="shop",
        )
        path = folder / "config.yaml"
        config_file.write_private(path, config_file.render(document), overwrite=True)
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        code = main(list(words))
        self.out, self.err = self.capfd.readouterr()
        return code

    def token(self, site: str = "ams", **changed: Any) -> str:
        """Path of a file with a break-glass token."""
        fields: dict[str, Any] = {
            "trust_domain": DOMAIN,
            "site": site,
            "namespace": "shop",
            "workload": "",
            "allow": ("stop",),
            "purpose": "incident 4711",
            "serial": "0f" * 16,
            "issued_at_ms": now_ms(),
            "expires_at_ms": now_ms() + 3_600_000,
        }
        root = self.authority.certificate.public_bytes(serialization.Encoding.DER)
        made = sign_grant(Grant(**{**fields, **changed}), self.authority.key, (), root)
        path = self.folder / f"token-{site}"
        path.write_text(f"{made}\n")
        return str(path)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def operator(
    authority: Authority, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> Operator:
    monkeypatch.setenv("EDGECTL_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.delenv("EDGECTL_BREAK_GLASS_TOKEN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Operator(authority, tmp_path, capfd)


@pytest.fixture
def node(authority: Authority) -> Iterator[Node]:
    started: list[LocalNode] = []

    def start(name: str = "node-a", site: str = "ams", **more: Any) -> LocalNode:
        started.append(LocalNode(more.pop("authority", authority), name, site, **more))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_the_operators_certificate_lets_in_and_fits_no_other_node(
    node: Node, operator: Operator, authority: Authority
) -> None:
    one, two = node("node-a"), node("node-b")
    one.knows(two)
    assert operator("--site-endpoint", one.endpoint, "get", "nodes", "-o", "name") == 0
    assert operator.out == "node/node-a\nnode/node-b\n"
    assert operator.err == ""
    proof, other = one.entered[0].operator, two.entered[0].operator
    root = authority.certificate.public_bytes(serialization.Encoding.DER)

    def proven(proof: local_pb2.OperatorProof, certificate: bytes) -> str:
        message = entry(proof.challenge, certificate)
        chain = list(proof.certificate_chain)
        now = time.time()
        return verify_operator(message, proof.signature, chain, [root], now, now, DOMAIN).id.name

    assert proven(proof, one.certificate) == "ann"
    with pytest.raises(Exception, match="signature"):
        proven(proof, two.certificate)
    assert proof.challenge != other.challenge


def test_a_node_of_another_installation_is_told_nothing(node: Node, operator: Operator) -> None:
    stranger = node(authority=Authority("another root"))
    assert operator("--site-endpoint", stranger.endpoint, "get", "nodes") == 1
    assert "is not let near" in operator.err
    assert "the CA of context 'test'" in operator.err
    assert not stranger.entered


def test_a_name_of_several_nodes_leads_to_one_of_them(
    node: Node, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that is pinned goes to the one that showed its certificate."""
    one = node()
    port = one.endpoint.rpartition(":")[2]
    resolve = socket.getaddrinfo

    def several(host: Any, *more: Any, **named: Any) -> Any:
        return resolve("127.0.0.1" if host == "site.invalid" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", several)  # gRPC resolves by itself, and would not
    assert operator("--site-endpoint", f"site.invalid:{port}", "get", "nodes", "-o", "name") == 0
    assert operator.out == "node/node-a\n"


def test_an_address_that_leads_to_something_else_is_passed_over(
    node: Node, operator: Operator
) -> None:
    one, two, stranger = node("node-a"), node("node-b"), node(authority=Authority("another root"))
    one.knows(two)
    one.answer.peers[0].local_endpoints[:] = [stranger.endpoint, two.endpoint, "127.0.0.1:1"]
    for _ in range(3):  # whichever answers first
        assert operator("--site-endpoint", one.endpoint, "get", "nodes", "-o", "name") == 0
        assert operator.out == "node/node-a\nnode/node-b\n"
        one.sessions.clear()
        two.sessions.clear()
    assert not stranger.entered


def test_who_passes_on_what_a_real_node_signed_is_told_nothing(
    node: Node, operator: Operator
) -> None:
    """In the middle: with a certificate of its own, and the introduction of the node behind it."""
    real, middle = node("node-a"), node("node-a")
    middle.signed_for = real.certificate
    assert operator("--site-endpoint", middle.endpoint, "get", "nodes") == 1
    assert "is not let near" in operator.err
    assert not middle.entered


def test_an_expired_node_is_believed_with_a_warning(node: Node, operator: Operator) -> None:
    old = node(life=timedelta(hours=-1))
    assert operator("--site-endpoint", old.endpoint, "get", "nodes", "-o", "name") == 0
    assert "warning: node-a: the certificate of node-a expired at" in operator.err


def test_a_slow_proof_is_no_wrong_clock(
    node: Node, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a box with a slow processor."""
    monkeypatch.setattr("edgectl.site.clocks.TOLERATED_MS", 1_000)
    one = node()
    one.proof_s = 1.5
    assert operator("--site-endpoint", one.endpoint, "get", "node/node-a", "-o", "json") == 0
    assert json.loads(operator.out)["status"]["observedAt"] == one.answer.now_ms


def test_a_wrong_clock_is_told(node: Node, operator: Operator) -> None:
    one = node()
    one.clock_ms = -400 * 86_400_000 - 3_600_000
    assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 0
    assert "the clock of node-a is 400d behind this machine's" in operator.err
    assert operator("--site-endpoint", one.endpoint, "events", "-o", "json") == 0
    event = json.loads(operator.out)
    assert (event["reason"], event["source"]) == ("LocalEnter", "operator/ann at node-a")
    assert abs(event["lastAt"] - now_ms()) < 10_000, "by this machine's clock"


def test_a_token_needs_no_context(
    node: Node, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    monkeypatch.setenv("EDGECTL_CONFIG", "/nonexistent")
    words = ["--site-endpoint", one.endpoint, "get", "nodes", "-o", "name"]
    assert operator(*words) == 1
    assert "--break-glass-token FILE enters a site without a context" in operator.err
    path = operator.token()
    assert operator(*words, "--break-glass-token", path) == 0
    monkeypatch.setenv("EDGECTL_BREAK_GLASS_TOKEN", Path(path).read_text())
    assert operator(*words) == 0
    assert [one.WhichOneof("credential") for one in one.entered] == ["break_glass_token"] * 2


def test_a_token_is_not_given_to_another_site(node: Node, operator: Operator) -> None:
    other = node("node-z", "utr")
    path = operator.token("ams")
    assert (
        operator("--site-endpoint", other.endpoint, "--break-glass-token", path, "get", "no") == 1
    )
    assert "it is of site utr; the token is for ams" in operator.err
    assert not other.entered


@pytest.mark.parametrize("text", ["", "polder1.abc", "polder-break-glass1.abc"])
def test_what_is_no_token(operator: Operator, tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    words = ["--site-endpoint", "127.0.0.1:1", "--break-glass-token", str(path), "get", "nodes"]
    assert operator(*words) == 1
    assert "token" in operator.err


def test_a_session_that_is_over_is_renewed(node: Node, operator: Operator) -> None:
    one = node()
    one.answer.replicas.add(role="Runs").status.MergeFrom(
        agent_pb2.ReplicaStatus(namespace="shop", workload="db", replica="db-0")
    )
    one.forgets_after_show = True
    assert operator("--site-endpoint", one.endpoint, "stop", "db-0") == 0
    assert operator.out == "it will end within 30 s [node-a]\n"
    assert len(one.entered) == 2


def test_a_session_is_kept_for_the_next_command(
    node: Node, operator: Operator, tmp_path: Path, authority: Authority, capfd: Any
) -> None:
    one = node()
    words = ["--site-endpoint", one.endpoint, "get", "nodes", "-o", "name"]
    for _ in range(3):
        assert operator(*words) == 0
    assert len(one.entered) == 1
    (kept,) = (tmp_path / "cache" / "polder" / "sessions").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    one.sessions.clear()  # as when its agent was restarted
    assert operator(*words) == 0
    assert operator(*words) == 0
    assert len(one.entered) == 2
    kept.write_text("{")
    assert operator(*words) == 0
    assert len(one.entered) == 3
    assert Operator(authority, tmp_path, capfd)(*words) == 0
    assert len(one.entered) == 4, "another certificate does not use it"


def test_a_session_that_is_about_to_end_is_not_used(node: Node, operator: Operator) -> None:
    one = node()
    one.session_ms = 10_000
    for _ in range(2):
        assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 0
    assert len(one.entered) == 2


def test_what_answers_later_at_a_nodes_address_gets_nothing_of_it(
    node: Node, operator: Operator
) -> None:
    """The session is bound to the certificate: another one is asked for proof again."""
    one = node()
    assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 0
    one.stop()
    stranger = node(authority=Authority("another root"), endpoint=one.endpoint)
    assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 1
    assert "is not let near" in operator.err
    assert not stranger.seen_sessions


def test_a_change_whose_answer_is_lost_is_sent_again_with_its_id(
    node: Node, operator: Operator
) -> None:
    one = node()
    one.lose_answers = 1
    assert operator("--site-endpoint", one.endpoint, "freeze", "--reason", "r") == 0
    first, second = one.changes
    assert first.id == second.id
    one.lose_answers = 2
    assert operator("--site-endpoint", one.endpoint, "freeze") == 1


def test_a_refusal_is_told_with_its_hint(node: Node, operator: Operator) -> None:
    one = node()
    one.refuses = (
        grpc.StatusCode.UNAUTHENTICATED,
        "Expired",
        "the certificate of ann expired at 2026-01-01 00:00:00Z",
        "a break-glass token needs no orchestrator",
    )
    assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 1
    assert "error: the certificate of ann expired" in operator.err
    assert "  a break-glass token needs no orchestrator" in operator.err
    assert len(one.entered) == 1, "three wrong tries a minute are let through"


def test_a_node_that_refuses_does_not_hide_the_others(node: Node, operator: Operator) -> None:
    one, two = node("node-a"), node("node-b")
    one.knows(two)
    two.refuses = (grpc.StatusCode.UNAUTHENTICATED, "Revoked", "ann was revoked", "")
    assert operator("--site-endpoint", one.endpoint, "get", "nodes") == 0
    assert "1 of 2 nodes of the site answered" in operator.err
    assert "ann was revoked" in operator.err


def test_logs_and_commands(node: Node, operator: Operator) -> None:
    one = node()
    status = agent_pb2.ReplicaStatus(namespace="shop", workload="db", replica="db-0")
    status.containers.add(name="app")
    one.answer.replicas.add(role="Runs").status.MergeFrom(status)
    one.says = [
        agent_pb2.RelayRequest(stdout=b"one\n"),
        agent_pb2.RelayRequest(end=agent_pb2.RelayEnd()),
    ]
    assert operator("logs", "db-0", "--site-endpoint", one.endpoint) == 0
    assert operator.out == "one\n"
    read, write = os.pipe()
    os.write(write, b"typed")
    os.close(write)
    saved = os.dup(0)
    os.dup2(read, 0)
    try:
        code = operator("exec", "-i", "db-0", "--site-endpoint", one.endpoint, "--", "cat", "-")
    finally:
        os.dup2(saved, 0)
    assert (code, operator.out) == (7, "typed")
    opened = one.heard[1].open
    assert (opened.exec.container, list(opened.exec.command)) == ("app", ["cat", "-"])


# --- what is no node --------------------------------------------------------------------------


def test_nobody_is_there(operator: Operator) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{held.getsockname()[1]}"
        assert operator("--site-endpoint", endpoint, "get", "nodes") == 1
    assert f"no node of the site can be reached: {endpoint}: connection refused" in operator.err
    assert "7446" in operator.err


def test_a_name_that_is_not_known(operator: Operator) -> None:
    assert operator("--site-endpoint", "no-such-box.invalid", "get", "nodes") == 1
    assert "no-such-box.invalid:7446" in operator.err
    assert "Traceback" not in operator.err


def test_a_port_of_something_else(operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken:
                taken.recv(1024)
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        assert operator("--site-endpoint", endpoint, "get", "nodes") == 1
    assert "it does not speak TLS as an agent does" in operator.err


def test_a_box_that_takes_the_connection_and_says_nothing(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgectl.site.link.certificate_at.__defaults__", (0.3,))
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        assert operator("--site-endpoint", endpoint, "get", "nodes") == 1
    assert "no answer within 0.3 s" in operator.err


def test_an_orchestrator_is_no_node(operator: Operator, authority: Authority) -> None:
    from tests.integration.edgectl_server import FakeInstallation

    installation = FakeInstallation()
    try:
        assert operator("--site-endpoint", installation.endpoint, "get", "nodes") == 1
    finally:
        installation.stop()
    assert "no node of the site can be reached" in operator.err


def test_json_of_what_a_node_says(node: Node, operator: Operator) -> None:
    one = node()
    one.answer.isolated_ms = 60_000
    assert operator("--site-endpoint", one.endpoint, "get", "node/node-a", "-o", "json") == 0
    status = json.loads(operator.out)["status"]
    assert status["isolated"] is True
    assert abs(status["isolatedSinceAt"] - (now_ms() - 60_000)) < 10_000


def test_certificates_of_the_context_that_cannot_be_used(
    operator: Operator, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    document = config_file.load(path)
    document["users"][0]["user"]["clientKeyData"] = "bm8="
    config_file.write_private(path, config_file.render(document), overwrite=True)
    assert operator("--site-endpoint", "127.0.0.1:1", "get", "nodes") == 1
    assert "context 'test': its certificates cannot be used" in operator.err


def test_the_fake_shows_what_agents_show(node: Node) -> None:
    """Its certificate is no CA and of no authority: pinning is all that there is."""
    one = node()
    host, _, port = one.endpoint.rpartition(":")
    shown = ssl.get_server_certificate((host, int(port)))
    found = x509.load_pem_x509_certificate(shown.encode())
    assert found.issuer == found.subject
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
