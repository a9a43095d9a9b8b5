"""A tiny OCI registry on 127.0.0.1, which containerd reaches over plain HTTP.

For tests of pulls: it serves built images, asks for a password, or stops answering.
Protocol: https://github.com/opencontainers/distribution-spec
"""

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from devcluster.image import Blob, BuiltImage

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Registry(ThreadingHTTPServer):
    """`credentials`: "user:password" that every request must carry; `status`: answer only this."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manifests: dict[str, tuple[Blob, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.credentials = ""
        self.status = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def add(self, repository: str, image: BuiltImage) -> str:
        """Serve the image; returns its reference."""
        for blob in (image.layer, image.config, image.manifest):
            self.blobs[blob.digest] = blob.content
        self.manifests[f"{repository}/manifests/1"] = (image.manifest, MANIFEST_TYPE)
        return f"{self.host}/{repository}:1"

    def add_index(self, repository: str, images: Mapping[str, BuiltImage]) -> str:
        """Serve images by their architectures under one name; returns its reference."""
        reference = f"{self.host}/{repository}:1"
        manifests = []
        for arch, image in images.items():
            self.add(repository, image)
            platform = {"os": "linux", "architecture": arch}
            manifests.append({**image.manifest.descriptor(MANIFEST_TYPE), "platform": platform})
        body = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        index = Blob(json.dumps(body).encode())
        self.manifests[f"{repository}/manifests/1"] = (index, INDEX_TYPE)
        self.manifests[f"{repository}/manifests/{index.digest}"] = (index, INDEX_TYPE)
        return reference


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        registry = self.server
        expected = "Basic " + base64.b64encode(registry.credentials.encode()).decode()
        if registry.credentials and self.headers.get("Authorization") != expected:
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="test"'}, body=body)
        elif registry.status:
            self._send(registry.status, b"", {}, body=body)
        else:
            # A mirror is also asked for whom it stands in: `?ns=registry.example`.
            path = self.path.partition("?")[0]
            self._send_content(path.removeprefix("/v2/"), body=body)

    def _send_content(self, path: str, *, body: bool) -> None:
        digest = path.rpartition("/")[2]
        if path in self.server.manifests:
            manifest, kind = self.server.manifests[path]
            content, digest = manifest.content, manifest.digest
        elif digest in self.server.blobs:
            content = self.server.blobs[digest]
            kind = MANIFEST_TYPE if "/manifests/" in path else "application/octet-stream"
        else:
            self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', {}, body=body)
            return
        self._send(200, content, {"Content-Type": kind, "Docker-Content-Digest": digest}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests stay quiet."""


@contextmanager
def running_registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()
        thread.join()
