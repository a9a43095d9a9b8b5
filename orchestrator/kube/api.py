"""The few calls of the Kubernetes API that the chart's jobs need, as the pod's service account.

Used by `keeping.py`. Standard library only: a client library would be larger than the orchestrator.
Protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = 15.0
_BYTES_MAX = 4 << 20
_MESSAGE_MAX = 300

Body = dict[str, Any]


class KubeRefused(Exception):
    """The API refused, or is not there; or what it has does not fit. `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class KubeApi:
    """Objects of one namespace. `plural` is as in paths: secrets, configmaps."""

    def __init__(self, host: str, port: int, namespace: str, token: str, ca: Path) -> None:
        self.namespace = namespace
        self._host, self._port = host, port
        self._token = token
        try:
            self._context = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise KubeRefused(f"the cluster's CA {ca} cannot be read: {error}") from error

    def get(self, plural: str, name: str) -> Body | None:
        """None when there is none. Raises KubeRefused."""
        status, body = self._call("GET", f"{plural}/{name}")
        if status == 404:
            return None
        return self._expect(status, body, f"reading {plural}/{name}")

    def create(self, plural: str, body: Body) -> bool:
        """False when one of its name is there already. Raises KubeRefused."""
        status, answer = self._call("POST", plural, body)
        if status == 409:
            return False
        self._expect(status, answer, f"creating {plural}/{body['metadata']['name']}")
        return True

    def replace(self, plural: str, body: Body) -> None:
        """Raises KubeRefused, also when it changed since it was read."""
        name = body["metadata"]["name"]
        status, answer = self._call("PUT", f"{plural}/{name}", body)
        self._expect(status, answer, f"changing {plural}/{name}")

    def _expect(self, status: int, body: Body, what: str) -> Body:
        if status in (200, 201):
            return body
        message = str(body.get("message", ""))[:_MESSAGE_MAX]
        raise KubeRefused(f"{what} in namespace {self.namespace}: HTTP {status} {message}")

    def _call(self, method: str, path: str, body: Body | None = None) -> tuple[int, Body]:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=_TIMEOUT_S, context=self._context
        )
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(
                method,
                f"/api/v1/namespaces/{self.namespace}/{path}",
                json.dumps(body) if body is not None else None,
                headers,
            )
            response = connection.getresponse()
            answer = json.loads(response.read(_BYTES_MAX))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise KubeRefused(
                f"the Kubernetes API at {self._host}:{self._port} does not answer: {error}",
                "Does a NetworkPolicy forbid it? See networkPolicy.apiServer in docs/helm.md.",
            ) from error
        finally:
            connection.close()
        return response.status, answer if isinstance(answer, dict) else {}


def own_api(environment: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> KubeApi:
    """As the pod in which this process runs. Raises KubeRefused outside of one."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        token = (account / "token").read_text().strip()
        namespace = (account / "namespace").read_text().strip()
    except OSError as error:
        raise KubeRefused(f"{error.filename}: {error.strerror}", _ONLY_IN_A_POD) from error
    if not host or not port.isdecimal():
        raise KubeRefused("KUBERNETES_SERVICE_HOST and _PORT are not set", _ONLY_IN_A_POD)
    return KubeApi(host, int(port), namespace, token, account / "ca.crt")


_ONLY_IN_A_POD = "This command is for jobs of the Helm chart, with a service account's token."
