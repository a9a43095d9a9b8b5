"""The Kubernetes API as an administrator, for the tests' kubelet and for what tests look at."""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Object = dict[str, Any]

PATHS = {
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "configmaps": "/api/v1",
    "namespaces": "/api/v1",
    "serviceaccounts": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "jobs": "/apis/batch/v1",
    "statefulsets": "/apis/apps/v1",
    "roles": "/apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1",
    "poddisruptionbudgets": "/apis/policy/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


PLURALS = {
    "NetworkPolicy": "networkpolicies",
    **{
        kind: f"{kind.lower()}s"
        for kind in (
            "Pod", "Service", "ConfigMap", "ServiceAccount", "Job", "StatefulSet", "Role",
            "RoleBinding", "PodDisruptionBudget", "Secret",
        )
    },
}  # fmt: skip


class ApiRefused(Exception):
    """`status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status} {message}")
        self.status = status


@dataclass(frozen=True)
class AdminApi:
    host: str
    port: int
    ca: Path
    token: str

    def call(self, method: str, path: str, body: Object | None = None, kind: str = "") -> Object:
        """Raises ApiRefused, OSError."""
        context = ssl.create_default_context(cafile=str(self.ca))
        link = http.client.HTTPSConnection(self.host, self.port, timeout=20, context=context)
        try:
            headers = {
                "Authorization": f"Bearer {self.token}",
                "Content-Type": kind or "application/json",
            }
            link.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = link.getresponse()
            raw = response.read()
        finally:
            link.close()
        try:
            answer: Object = json.loads(raw)
        except ValueError:
            answer = {"message": raw.decode(errors="replace")}
        if response.status >= 300:
            raise ApiRefused(response.status, str(answer.get("message")))
        return answer

    def path(self, plural: str, namespace: str = "", name: str = "") -> str:
        at = f"/namespaces/{namespace}" if namespace else ""
        return f"{PATHS[plural]}{at}/{plural}" + (f"/{name}" if name else "")

    def list(self, plural: str, namespace: str = "") -> list[Object]:
        found: list[Object] = self.call("GET", self.path(plural, namespace))["items"]
        return found

    def names(self, plural: str, namespace: str) -> set[str]:
        return {item["metadata"]["name"] for item in self.list(plural, namespace)}

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        try:
            return self.call("GET", self.path(plural, namespace, name))
        except ApiRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def would_take(self, namespace: str, body: Object) -> None:
        """Whether the server would create it, with every field known. Raises ApiRefused."""
        plural = PLURALS[body["kind"]]
        self.call("POST", f"{self.path(plural, namespace)}?dryRun=All&fieldValidation=Strict", body)

    def patch(self, path: str, body: Object) -> Object:
        return self.call("PATCH", path, body, "application/merge-patch+json")
