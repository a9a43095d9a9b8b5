"""The jobs' calls and what an API server answers, over TLS. tests/charts has a real server."""

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from devcluster.ports import free_port
from orchestrator.kube.api import KubeApi, KubeRefused, own_api
from orchestrator.main import main
from tests.integration.etcd_server import TestAuthority


class Server(ThreadingHTTPServer):
    """Answers as told, and remembers what was asked."""

    answers: dict[tuple[str, str], tuple[int, Any]]
    asked: list[tuple[str, str, str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        token = self.headers.get("Authorization", "")
        self.server.asked.append((self.command, self.path, token, body))
        status, answer = self.server.answers.get((self.command, self.path), (404, {}))
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        """Nothing: the test says what went wrong."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    authority = TestAuthority(tmp_path / "tls")
    files = authority.issue("server")
    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def account(server: Server, tmp_path: Path) -> Path:
    """As it is mounted in a pod."""
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("the-token\n")
    (folder / "namespace").write_text("edge")
    (folder / "ca.crt").write_bytes((tmp_path / "tls/ca.pem").read_bytes())
    return folder


@pytest.fixture
def api(server: Server, account: Path) -> KubeApi:
    port = server.server_address[1]
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(port)}
    return own_api(where, account)


SECRETS = "/api/v1/namespaces/edge/secrets"
BODY = {"metadata": {"name": "polder-ca"}, "data": {"ca.key": "c2VjcmV0"}}


def test_what_is_there_and_what_is_not(server: Server, api: KubeApi) -> None:
    server.answers["GET", f"{SECRETS}/polder-ca"] = 200, BODY
    assert api.get("secrets", "polder-ca") == BODY
    assert api.get("secrets", "other") is None
    assert server.asked[0][2] == "Bearer the-token"


def test_what_is_there_is_not_made_again(server: Server, api: KubeApi) -> None:
    server.answers["POST", SECRETS] = 201, BODY
    assert api.create("secrets", BODY)
    server.answers["POST", SECRETS] = 409, {"message": "already exists"}
    assert not api.create("secrets", BODY)
    assert server.asked[-1][3] == BODY


def test_a_refusal_has_the_servers_words_and_no_secret(server: Server, api: KubeApi) -> None:
    server.answers["POST", SECRETS] = 403, {"message": "secrets is forbidden: User x"}
    with pytest.raises(KubeRefused, match=r"creating secrets/polder-ca .* HTTP 403") as caught:
        api.create("secrets", BODY)
    assert "is forbidden" in str(caught.value) and "c2VjcmV0" not in str(caught.value)
    server.answers["PUT", f"{SECRETS}/polder-ca"] = 409, {"message": "was modified"}
    with pytest.raises(KubeRefused, match=r"changing secrets/polder-ca .* was modified"):
        api.replace("secrets", BODY)


def test_an_answer_that_is_none_is_told(server: Server, api: KubeApi) -> None:
    server.answers["GET", f"{SECRETS}/polder-ca"] = 200, b"<html>"
    with pytest.raises(KubeRefused, match="does not answer"):
        api.get("secrets", "polder-ca")


def test_a_server_of_another_ca_is_not_spoken_to(
    server: Server, account: Path, tmp_path: Path
) -> None:
    other = TestAuthority(tmp_path / "other").ca
    stranger = KubeApi("127.0.0.1", server.server_address[1], "edge", "the-token", other)
    with pytest.raises(KubeRefused, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.get("secrets", "polder-ca")
    assert not server.asked, "the token was not shown"


def test_when_nobody_answers_a_policy_may_be_why(account: Path) -> None:
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(free_port())}
    with pytest.raises(KubeRefused, match="does not answer") as caught:
        own_api(where, account).get("secrets", "polder-ca")
    assert "networkPolicy.apiServer" in caught.value.hint


def test_outside_of_a_pod_it_says_what_it_is_for(
    account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KubeRefused, match="KUBERNETES_SERVICE_HOST"):
        own_api({}, account)
    record = ["kube", "record", "--name", "polder", "--store", "sqlite", "--ca-secret", "polder-ca"]
    assert main(record) == 1
    assert "jobs of the Helm chart" in capsys.readouterr().err
