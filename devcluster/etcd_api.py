"""How one etcd is started over TLS, and spoken to through its own JSON gateway.

Used by `etcd` (a member in a network namespace) and by tests that start members on this machine:
no etcdctl is needed.
"""

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.store.etcd.settings import EtcdTls

ASK_S = 3.0


class EtcdRefused(Exception):
    """etcd answered with an error, or not at all."""


@dataclass(frozen=True, slots=True)
class EtcdApi:
    """Of one member at `host:port`. Our certificate is the one that it uses itself."""

    host: str
    port: int
    tls: EtcdTls

    def is_healthy(self) -> bool:
        """It answers, and has a leader with which it agrees."""
        connection = self._connection(ASK_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def ask(
        self, path: str, body: Mapping[str, Any], timeout_s: float = 3 * ASK_S
    ) -> dict[str, Any]:
        """A call of etcd's v3 API as JSON, such as `cluster/member/list`. Raises EtcdRefused."""
        connection = self._connection(timeout_s)
        try:
            connection.request("POST", f"/v3/{path}", json.dumps(body))
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EtcdRefused(f"etcd {self.host}:{self.port}: {path}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise EtcdRefused(
                f"etcd {self.host}:{self.port}: {path}: {answer.get('error', answer)}"
            )
        return answer

    def _connection(self, timeout_s: float) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.tls.ca))
        context.load_cert_chain(self.tls.certificate, self.tls.key)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)


def command(
    name: str,
    data_dir: Path,
    client: str,
    peer_url: str,
    tls: EtcdTls,
    initial_cluster: str,
    *,
    state: str = "new",
    log_level: str = "warn",
) -> list[str]:
    """The process of one member. `client`: host:port for clients. Certificates on both ports."""
    files = {"cert-file": tls.certificate, "key-file": tls.key, "trusted-ca-file": tls.ca}
    flags = {
        "name": name,
        "data-dir": data_dir,
        "listen-client-urls": f"https://{client}",
        "advertise-client-urls": f"https://{client}",
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": initial_cluster,
        "initial-cluster-state": state,
        "client-cert-auth": "true",
        "peer-client-cert-auth": "true",
        "pre-vote": "true",  # a member that comes back calls no election
        "experimental-watch-progress-notify-interval": "1s",
        "logger": "zap",
        "log-level": log_level,
        **files,
        **{f"peer-{key}": path for key, path in files.items()},
    }
    return ["etcd", *(f"--{key}={value}" for key, value in flags.items())]
