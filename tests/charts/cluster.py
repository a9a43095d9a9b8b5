"""A control plane of Kubernetes on this machine: etcd, kube-apiserver, kube-controller-manager.

No node and no scheduler: `kubelet.py` takes both parts. Pods get addresses behind a bridge, whose
own address is that of the API server.
"""

import itertools
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from devcluster import preflight
from devcluster.ports import free_port
from tests.charts.api import AdminApi, ApiRefused, Object

READY_S = 90.0
CONTROLLERS = (
    "statefulset-controller",
    "job-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "disruption-controller",
)
_numbers = itertools.count(os.getpid() % 100)


def run(*command: str) -> str:
    """Raises CalledProcessError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def until(condition: Callable[[], bool], what: str, seconds: float = READY_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not, after {seconds:.0f} s: {what}"
        time.sleep(0.1)


class ControlPlane:
    """`start`, then `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number = next(_numbers) % 200
        self.bridge = f"plk{number}"
        self.subnet = f"10.215.{number}"
        self.host = f"{self.subnet}.1"
        self._port = free_port()
        self._etcd_port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        token = secrets.token_hex(16)
        (folder / "tls").mkdir()
        self._certificate = folder / "tls" / "apiserver.crt"
        self._accounts_key = folder / "accounts.key"
        key = rsa.generate_private_key(65537, 2048)
        self._accounts_key.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        self.api = AdminApi(self.host, self._port, self._certificate, token)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(self._kubeconfig(token)))

    def _kubeconfig(self, token: str) -> Object:
        cluster = {
            "server": f"https://{self.host}:{self._port}",
            "certificate-authority": str(self._certificate),
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }

    def start(self) -> None:
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.host}/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        etcd = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{free_port()}"
        self._run(
            "etcd", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )  # fmt: skip
        self._run(
            str(preflight.kube_apiserver()), f"--etcd-servers={etcd}",
            f"--bind-address={self.host}", f"--advertise-address={self.host}",
            f"--secure-port={self._port}", f"--cert-dir={self._certificate.parent}",
            f"--token-auth-file={self.folder / 'tokens.csv'}", "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._accounts_key}",
            f"--service-account-signing-key-file={self._accounts_key}",
        )  # fmt: skip
        until(self._answers, f"the API server answers ({self.folder})")
        manager = preflight.kube_apiserver()
        assert manager is not None
        self._run(
            str(manager.with_name("kube-controller-manager")), f"--kubeconfig={self.kubeconfig}",
            f"--root-ca-file={self._certificate}", "--leader-elect=false", "--secure-port=0",
            f"--service-account-private-key-file={self._accounts_key}",
            f"--controllers={','.join(CONTROLLERS)}",
        )  # fmt: skip

    def _answers(self) -> bool:
        assert all(one.poll() is None for one in self._processes), self._logs()
        try:
            self.api.list("namespaces")
            return self.api.get("namespaces", "", "default") is not None
        except (OSError, ApiRefused):
            return False

    def _logs(self) -> str:
        return "\n".join(log.read_text()[-1500:] for log in self.folder.glob("*.log"))

    def _run(self, *command: str) -> None:
        log = self.folder / f"{Path(command[0]).name}.log"
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            )

    def namespace(self, name: str) -> None:
        """Where only what is restricted may run, enforced by the API server."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"metadata": {"name": name, "labels": labels}}
        self.api.call("POST", self.api.path("namespaces"), body)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
