"""Runs the pods of a test's cluster as processes of this machine, as their spec says.

It stands for scheduler, kubelet, DNS and kube-proxy. Each pod gets a network namespace with an
address, and a read-only root with the volumes of its spec at their places; user, group, no
capabilities and no new privileges, as its security context says (`enter.py`). Probes of readiness
are really made. The root is an image that was built, or else this machine's programs and this
checkout, and the image's name says which program is meant. Network policies are not enforced.
"""

import base64
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.charts.api import ApiRefused, Object
from tests.charts.cluster import ControlPlane, run
from tests.charts.helm import ROOT

NODE = "box"
_PERIOD_S = 0.25
PROGRAMS = {
    "registry.example/polder/orchestrator": ["edge-orchestrator"],
    "registry.example/polder/etcd": ["etcd"],
}
_SEEN = ("usr", "bin", "sbin", "lib", "lib64")

_ENTER = Path(__file__).with_name("enter.py")


@dataclass(frozen=True)
class Unpacked:
    """An image that was built, as a folder."""

    root: Path
    config: Object


@dataclass
class Running:
    """A pod that was started here."""

    uid: str
    namespace: str
    name: str
    netns: str
    address: str
    hosts: Path
    process: subprocess.Popen[bytes]
    user: tuple[str, str]
    environment: dict[str, str]
    ready: bool = False
    ended: int | None = None

    def file(self, path: str) -> str:
        """What the process reads there."""
        return Path(f"/proc/{self.process.pid}/root{path}").read_text()


class Kubelet:
    """`start`, then `stop`. A thread of its own looks after the pods. `images`: by repository."""

    def __init__(self, plane: ControlPlane, images: Mapping[str, Unpacked] | None = None) -> None:
        self._images = images or {}
        self.plane = plane
        self.api = plane.api
        self.folder = plane.folder / "pods"
        self.folder.mkdir()
        self.pods: dict[str, Running] = {}
        self.errors: list[str] = []
        self._next = 10
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        for pod in list(self.pods.values()):
            self._end(pod, 2)

    def find(self, namespace: str, name: str) -> Running:
        return next(p for p in self.pods.values() if (p.namespace, p.name) == (namespace, name))

    def execute(self, pod: Running, *command: str) -> str:
        """As `kubectl exec` would: in the pod's namespaces, with its rights."""
        done = subprocess.run(
            [sys.executable, str(_ENTER), "exec", str(pod.process.pid), *pod.user, *command],
            capture_output=True, text=True, env=pod.environment, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    # --- the loop --------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.wait(_PERIOD_S):
            try:
                self._look()
            except (ApiRefused, OSError, AssertionError) as error:
                self.errors.append(repr(error))

    def _look(self) -> None:
        found = {item["metadata"]["uid"]: item for item in self.api.list("pods")}
        for uid in [uid for uid in self.pods if uid not in found]:
            self._end(self.pods.pop(uid), 1)
        for uid, item in found.items():
            if item["metadata"].get("deletionTimestamp"):
                self._delete(uid, item)
            elif uid not in self.pods and item["status"].get("phase") == "Pending":
                self._begin(item)
            elif uid in self.pods:
                self._report(self.pods[uid], item)
        self._write_hosts()

    def _begin(self, item: Object) -> None:
        meta, namespace = item["metadata"], item["metadata"]["namespace"]
        if not item["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            path = self.api.path("pods", namespace, meta["name"]) + "/binding"
            self.api.call("POST", path, {"metadata": {"name": meta["name"]}, "target": target})
        try:
            self.pods[meta["uid"]] = self._run(item)
        except _NotYet as wait:
            self.errors.append(f"{meta['name']} waits: {wait}")

    def _run(self, item: Object) -> Running:
        meta, spec = item["metadata"], item["spec"]
        (container,) = spec["containers"]
        self._next += 1
        address = f"{self.plane.subnet}.{self._next}"
        home = self.folder / meta["uid"]
        home.mkdir(exist_ok=True)
        uid, gid = spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"]
        root, mounts, entry, environment = self._program(container, home)
        (home / "hosts").write_text("127.0.0.1 localhost\n")
        mounts += [("/proc", "proc", "rw"), ("/dev", "dev", "rw")]
        mounts += [(str(home / "hosts"), "etc/hosts", "ro"), *self._mounts(item, container, gid)]
        mounts.sort(key=lambda mount: mount[1].count("/"))  # one may be below another, such as /tmp
        (home / "mounts").write_text("".join(" ".join(m) + "\n" for m in mounts))
        environment |= self._environment(item, container)
        netns = self._network(address)
        command = [*(container.get("command") or entry), *container.get("args", ())]
        command = [word.replace("$(POD_NAME)", meta["name"]) for word in command]
        user = (str(uid), str(gid))
        with (home / "log").open("wb") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", netns, sys.executable, str(_ENTER), "run", str(root),
                 str(home / "mounts"), *user, *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            )  # fmt: skip
        return Running(
            meta["uid"], meta["namespace"], meta["name"], netns, address, home / "hosts", process,
            user, environment,
        )  # fmt: skip

    def _program(
        self, container: Object, home: Path
    ) -> tuple[Path, list[tuple[str, str, str]], list[str], dict[str, str]]:
        """Root, what is mounted there, entry point and environment of the image."""
        repository = container["image"].partition("@")[0]
        image = self._images.get(repository)
        if image is not None:
            pairs = (word.split("=", 1) for word in image.config["Env"])
            return image.root, [], image.config["Entrypoint"], dict(pairs)
        root = home / "root"
        (root / "etc").mkdir(parents=True)
        for name in ("passwd", "group", "ld.so.cache", "nsswitch.conf"):
            if Path(f"/etc/{name}").exists():
                (root / "etc" / name).write_bytes(Path(f"/etc/{name}").read_bytes())
        mounts = [(f"/{name}", name, "ro") for name in _SEEN if Path(f"/{name}").exists()]
        mounts += [(path, path.lstrip("/"), "ro") for path in (sys.base_prefix, str(ROOT))]
        path = f"{ROOT}/.venv/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return root, mounts, PROGRAMS[repository], {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}

    def _mounts(self, item: Object, container: Object, gid: int) -> Iterator[tuple[str, str, str]]:
        volumes = {volume["name"]: volume for volume in item["spec"].get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            source = self._volume(item, volumes[mount["name"]], gid)
            if sub := mount.get("subPathExpr"):
                source = source / sub.replace("$(POD_NAME)", item["metadata"]["name"])
            yield (
                str(source),
                mount["mountPath"].lstrip("/"),
                "ro" if mount.get("readOnly") else "rw",
            )

    def _environment(self, item: Object, container: Object) -> dict[str, str]:
        found = {
            "KUBERNETES_SERVICE_HOST": self.api.host,
            "KUBERNETES_SERVICE_PORT": str(self.api.port),
        }
        for env in container.get("env", ()):
            wanted = env.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            found[env["name"]] = item["metadata"]["name"] if wanted else env["value"]
        return found

    def _network(self, address: str) -> str:
        number = address.rpartition(".")[2]
        netns, inside = f"{self.plane.bridge}-{number}", f"{self.plane.bridge}-{number}"
        run("ip", "netns", "add", netns)
        run("ip", "link", "add", inside, "type", "veth", "peer", "name", "eth0", "netns", netns)
        run("ip", "link", "set", inside, "master", self.plane.bridge, "up")
        run("ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            run("ip", "-n", netns, "link", "set", link, "up")
        return netns

    # --- volumes ---------------------------------------------------------------------------------

    def _volume(self, item: Object, volume: Object, gid: int) -> Path:
        """As a kubelet makes it: files for root and the group, or a folder that the group owns."""
        name, namespace = volume["name"], item["metadata"]["namespace"]
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            return _folder(self.plane.folder / "volumes" / namespace / claim, gid)
        home = self.folder / item["metadata"]["uid"] / "volumes" / name
        if "emptyDir" in volume:
            return _folder(home, gid)
        for path, data in self._files(item, volume):
            file = home / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            os.chown(file, 0, gid)
            file.chmod(0o440)
        return home

    def _files(self, item: Object, volume: Object) -> Iterator[tuple[str, bytes]]:
        namespace = item["metadata"]["namespace"]
        if "secret" in volume:
            yield from self._items("secrets", namespace, volume["secret"]["secretName"], volume)
        elif "configMap" in volume:
            yield from self._items("configmaps", namespace, volume["configMap"]["name"], volume)
        else:
            for source in volume["projected"]["sources"]:
                if "serviceAccountToken" in source:
                    yield "token", self._token(item).encode()
                elif "configMap" in source:
                    name = source["configMap"]["name"]
                    yield from self._items("configmaps", namespace, name, source)
                else:
                    yield "namespace", namespace.encode()

    def _items(
        self, plural: str, namespace: str, name: str, volume: Object
    ) -> Iterator[tuple[str, bytes]]:
        found = self.api.get(plural, namespace, name)
        if found is None:
            raise _NotYet(f"there is no {plural}/{name}")
        asked = (volume.get("secret") or volume.get("configMap") or {}).get("items")
        for key, value in found["data"].items():
            data = base64.b64decode(value) if plural == "secrets" else value.encode()
            if asked is None:
                yield key, data
            for one in asked or ():
                if one["key"] == key:
                    yield one["path"], data

    def _token(self, item: Object) -> str:
        account = item["spec"]["serviceAccountName"]
        path = self.api.path("serviceaccounts", item["metadata"]["namespace"], account)
        answer = self.api.call("POST", f"{path}/token", {"spec": {"expirationSeconds": 3600}})
        return str(answer["status"]["token"])

    # --- what becomes of it ----------------------------------------------------------------------

    def _report(self, pod: Running, item: Object) -> None:
        if pod.ended is None:
            pod.ended = pod.process.poll()
        (container,) = item["spec"]["containers"]
        pod.ready = pod.ended is None and self._is_ready(pod, container.get("readinessProbe"))
        restarts = item["spec"]["restartPolicy"] == "Always"
        phase = "Running"
        state: Object = {"running": {"startedAt": _now()}}
        if pod.ended is not None:
            state = {"terminated": {"exitCode": pod.ended, "reason": "Ended"}}
            if not restarts:
                phase = "Failed" if pod.ended else "Succeeded"
        conditions = [
            {"type": kind, "status": str(pod.ready)} for kind in ("Ready", "ContainersReady")
        ]
        told = item["status"]
        before = {c["type"]: c["status"] for c in told.get("conditions", ())}
        if told.get("phase") == phase and before.get("Ready") == str(pod.ready):
            return
        status = {
            "phase": phase,
            "podIP": pod.address,
            "podIPs": [{"ip": pod.address}],
            "startTime": told.get("startTime") or _now(),
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Initialized", "status": "True"},
                *conditions,
            ],
            "containerStatuses": [
                {
                    "name": container["name"], "image": container["image"], "imageID": "",
                    "ready": pod.ready, "restartCount": 0, "started": True, "state": state,
                }
            ],
        }  # fmt: skip
        path = self.api.path("pods", pod.namespace, pod.name) + "/status"
        self.api.patch(path, {"status": status})

    def _is_ready(self, pod: Running, probe: Any) -> bool:
        if not probe:
            return True
        if "grpc" in probe:
            return _grpc_health(f"{pod.address}:{probe['grpc']['port']}", probe["grpc"]["service"])
        port = 2381 if probe["httpGet"]["port"] == "health" else probe["httpGet"]["port"]
        return _http_health(pod.address, port, probe["httpGet"]["path"])

    def _delete(self, uid: str, item: Object) -> None:
        pod = self.pods.pop(uid, None)
        if pod is not None:
            self._end(pod, item["metadata"].get("deletionGracePeriodSeconds") or 1)
        path = self.api.path("pods", item["metadata"]["namespace"], item["metadata"]["name"])
        try:
            self.api.call("DELETE", path, {"gracePeriodSeconds": 0})
        except ApiRefused as refusal:
            if refusal.status != 404:
                raise

    def _end(self, pod: Running, grace_s: float) -> None:
        if pod.process.poll() is None:
            pod.process.send_signal(signal.SIGTERM)
            try:
                pod.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                pod.process.kill()
                pod.process.wait()
        subprocess.run(["ip", "netns", "delete", pod.netns], check=False, capture_output=True)

    def _write_hosts(self) -> None:
        """Names of pods behind headless services, and of services: one of their ready pods."""
        items = {p["metadata"]["uid"]: p for p in self.api.list("pods")}
        lines = ["127.0.0.1 localhost"]
        for service in self.api.list("services"):
            selector = service["spec"].get("selector")
            if not selector:
                continue
            meta, spec = service["metadata"], service["spec"]
            domain = f"{meta['name']}.{meta['namespace']}.svc.cluster.local"
            for uid, pod in self.pods.items():
                labels = items.get(uid, {"metadata": {}})["metadata"].get("labels", {})
                if not selector.items() <= labels.items() or pod.namespace != meta["namespace"]:
                    continue
                if pod.ready or spec.get("publishNotReadyAddresses"):
                    lines += [f"{pod.address} {pod.name}.{domain}", f"{pod.address} {domain}"]
        text = "\n".join(lines) + "\n"
        for pod in self.pods.values():
            if pod.hosts.read_text() != text:
                pod.hosts.write_text(text)  # in place: it is mounted


class _NotYet(Exception):
    """Something that the pod needs is not there; a kubelet waits for it, too."""


def _folder(path: Path, gid: int) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 0, gid)
    path.chmod(0o2770)
    return path


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _grpc_health(address: str, service: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            found = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.RpcError:
            return False
    return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


def _http_health(host: str, port: int, path: str) -> bool:
    link = http.client.HTTPConnection(host, port, timeout=2)
    try:
        link.request("GET", path)
        return link.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        link.close()
