"""Builds OCI image archives from Debian's static busybox, with the standard library alone.

Called by the quickstart, the benchmarks and the tests, so that none needs an image registry.
An archive is an OCI layout in a tar (https://github.com/opencontainers/image-spec, image-layout.md)
that `ctr images import` and other tools read. The same input gives the same bytes.
"""

import hashlib
import io
import json
import platform
import struct
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BUSYBOX_CANDIDATES = (Path("/bin/busybox"), Path("/usr/bin/busybox"), Path("/sbin/busybox"))

PAUSE = "polder.local/pause:1"
HELLO = "polder.local/hello:1"
WEB = "polder.local/web:1"
WRITER = "polder.local/writer:1"

# The page names the replica, so that whoever fetches it sees who answered. It lives in /dev/shm,
# which is writable even when the root is read-only. The shell stays process 1 to pass SIGTERM on:
# httpd as process 1 would ignore it and cost every stop its whole grace period.
HELLO_SCRIPT = """#!/bin/sh
www=/dev/shm/www
port=${PORT:-8080}
name=${POLDER_REPLICA:-$(hostname)}
mkdir -p $www
echo "<!doctype html><title>Polder</title><h1>Hello from $name</h1><p>host $(hostname)</p>" \\
  > $www/index.html
echo ok > $www/healthz
trap 'echo "hello: stopping"; kill $server 2>/dev/null; exit 0' TERM INT
httpd -f -vv -p "$port" -h $www &
server=$!
echo "hello: $name serves on port $port"
wait $server
"""

# Answers with its version. With SICK_AFTER its health page is gone after so many seconds, though it
# still answers: the kind of bad version that looks well at first.
WEB_SCRIPT = """#!/bin/sh
www=/dev/shm/www
mkdir -p $www
echo "${VERSION:-none}" > $www/index.html
echo ok > $www/healthz
trap 'echo "web: version $VERSION stops"; kill $server 2>/dev/null; exit 0' TERM INT
httpd -f -p "${PORT:-8080}" -h $www &
server=$!
echo "web: version $VERSION serves"
if [ -n "$SICK_AFTER" ]; then
  (sleep "$SICK_AFTER"; echo "web: version $VERSION is sick"; rm $www/healthz) &
fi
wait $server
"""

# Writes its epoch to the register at REGISTER (devcluster/register.py) ten times a second, and has
# a page like the others. With DEAF it does not end when it is asked to.
WRITER_SCRIPT = """#!/bin/sh
www=/dev/shm/www
mkdir -p $www
echo "$POLDER_NODE" > $www/index.html
echo ok > $www/healthz
if [ -n "$DEAF" ]; then
  trap '' TERM INT
else
  trap 'kill $server 2>/dev/null; exit 0' TERM INT
fi
httpd -f -p "${PORT:-8080}" -h $www &
server=$!
read -r stay < /proc/sys/kernel/random/uuid
who="replica=$POLDER_REPLICA&node=$POLDER_NODE&stay=$stay"
register="${REGISTER%:*} ${REGISTER##*:}"
while :; do
  epoch=$POLDER_EPOCH
  [ -r /run/polder/epoch ] && read -r epoch < /run/polder/epoch
  read -r at _ < /proc/uptime
  # Not wget: a static one looks services up in what this image does not have.
  printf 'GET %s HTTP/1.0\\r\\n\\r\\n' "/write?$who&epoch=$epoch&at=$at" |
    nc -w 1 $register >/dev/null 2>&1
  sleep 0.1
done
"""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image of one layer. `files` maps absolute paths to contents; all are executable."""

    name: str
    architecture: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    environment: tuple[str, ...] = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin",)
    stop_signal: str = "SIGTERM"
    user: str = ""


@dataclass(frozen=True, slots=True)
class Blob:
    content: bytes

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.content).hexdigest()

    def descriptor(self, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": self.digest, "size": len(self.content)}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """The three blobs of an image, as a registry would serve them."""

    name: str
    layer: Blob
    config: Blob
    manifest: Blob


def host_architecture() -> str:
    """This machine's architecture in OCI words (`amd64`, `arm64`, ...)."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(machine, machine)


def find_busybox() -> Path | None:
    """The path of a busybox without a dynamic linker, or None (Debian: package busybox-static)."""
    return next((p for p in BUSYBOX_CANDIDATES if p.is_file() and is_static(p)), None)


def is_static(path: Path) -> bool:
    """True for an ELF file without a PT_INTERP program header."""
    data = path.read_bytes()[:4096]
    if data[:4] != b"\x7fELF":
        return False
    is_64 = data[4] == 2
    order = "<" if data[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + ("Q" if is_64 else "I"), data, 32 if is_64 else 28)
    size, count = struct.unpack_from(order + "HH", data, 54 if is_64 else 42)
    types = [struct.unpack_from(order + "I", data, offset + i * size)[0] for i in range(count)]
    return 3 not in types


def pause_image(architecture: str = "") -> ImageSpec:
    """The sandbox image: one process that sleeps for ever."""
    return busybox_image(PAUSE, architecture, entrypoint=("/bin/sleep", "2147483647"))


def hello_image(architecture: str = "", name: str = HELLO) -> ImageSpec:
    """A small web server with every busybox tool: `PORT` and `POLDER_REPLICA` steer it."""
    return busybox_image(
        name, architecture, entrypoint=("/hello.sh",), extra={"/hello.sh": HELLO_SCRIPT.encode()}
    )


def web_image(architecture: str = "", name: str = WEB) -> ImageSpec:
    """A web server that answers with `VERSION`; `SICK_AFTER` seconds later it is not ready."""
    return busybox_image(
        name, architecture, entrypoint=("/web.sh",), extra={"/web.sh": WEB_SCRIPT.encode()}
    )


def writer_image(architecture: str = "", name: str = WRITER) -> ImageSpec:
    """Writes its epoch to the register `REGISTER`; for replicas of which at most one may run."""
    return busybox_image(
        name, architecture, entrypoint=("/writer.sh",), extra={"/writer.sh": WRITER_SCRIPT.encode()}
    )


def busybox_image(
    name: str,
    architecture: str,
    *,
    entrypoint: tuple[str, ...],
    extra: dict[str, bytes] | None = None,
    user: str = "",
) -> ImageSpec:
    """An image with busybox and a link for each of its applets. Raises FileNotFoundError."""
    busybox = find_busybox()
    if busybox is None:
        raise FileNotFoundError("no static busybox; install the Debian package busybox-static")
    applets = subprocess.run(
        [str(busybox), "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    return ImageSpec(
        name=name,
        architecture=architecture or host_architecture(),
        entrypoint=entrypoint,
        files={"/bin/busybox": busybox.read_bytes(), **(extra or {})},
        user=user,
        links={f"/bin/{applet}": "busybox" for applet in applets if applet != "busybox"},
    )


def build(spec: ImageSpec) -> BuiltImage:
    layer = Blob(_layer(spec))
    config = Blob(
        _json(
            {
                "architecture": spec.architecture,
                "os": "linux",
                "config": {
                    "Env": list(spec.environment),
                    "Entrypoint": list(spec.entrypoint),
                    "Cmd": list(spec.command),
                    "WorkingDir": "/",
                    "StopSignal": spec.stop_signal,
                    **({"User": spec.user} if spec.user else {}),
                },
                "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
            }
        )
    )
    manifest = Blob(
        _json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
                "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
            }
        )
    )
    return BuiltImage(spec.name, layer, config, manifest)


def write_archive(path: Path, specs: Sequence[ImageSpec]) -> None:
    """Write one OCI archive with all the images, each under its full name."""
    images = [build(spec) for spec in specs]
    manifests = [
        {
            **image.manifest.descriptor("application/vnd.oci.image.manifest.v1+json"),
            "platform": {"os": "linux", "architecture": spec.architecture},
            "annotations": {"io.containerd.image.name": image.name},
        }
        for spec, image in zip(specs, images, strict=True)
    ]
    blobs = {b.digest: b.content for i in images for b in (i.layer, i.config, i.manifest)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        _add_file(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add_file(tar, "index.json", _json({"schemaVersion": 2, "manifests": manifests}))
        for digest, content in sorted(blobs.items()):
            _add_file(tar, "blobs/" + digest.replace(":", "/"), content)


def _layer(spec: ImageSpec) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        _add_file(
            tar, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
        )
        _add_file(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        for path, content in sorted(spec.files.items()):
            _add_file(tar, path.lstrip("/"), content, mode=0o755)
        for path, target in sorted(spec.links.items()):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
    return out.getvalue()


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)  # owner 0:0 and time 0: the archive is reproducible
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
