"""An OCI registry of a site, Debian's docker-registry, and how a containerd asks it first.

For tests, and the model for `docs/site-registry.md`: what is written here is what an operator
writes on a box. Formats: docker-registry's configuration.md; containerd's docs/hosts.md.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from devcluster.containerd import PrivateContainerd
from devcluster.daemon import Daemon

ANSWER_S = 1.0


def repository(upstream: str) -> str:
    """Where the images of another registry lie in this one: below its name.

    So that `a.example/app` and `b.example/app` stay two. A repository's name has no colon.
    """
    return upstream.replace(":", "-")


def hosts_toml(upstream: str, mirrors: Sequence[str]) -> str:
    """For `certs.d/<upstream>/hosts.toml`: the mirrors (URLs) in their order, then the upstream."""
    lines = [f'server = "https://{upstream}"']
    for url in mirrors:
        lines += [
            "",
            f'[host."{url}/v2/{repository(upstream)}"]',
            '  capabilities = ["pull", "resolve"]',
            "  override_path = true",
        ]
    return "\n".join(lines) + "\n"


def use_mirrors(containerd: PrivateContainerd, upstream: str, mirrors: Sequence[str]) -> None:
    """From its next pull on; containerd reads the file each time."""
    folder = containerd.paths.certs / upstream
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(hosts_toml(upstream, mirrors))


class SiteRegistry:
    """One registry with its storage in the directory. `read_only`: as peers should see it.
    `netns`: of the box that it runs on; the machine if empty."""

    def __init__(
        self, directory: Path, host: str, port: int, *, read_only: bool = False, netns: str = ""
    ) -> None:
        self.url = f"http://{host}:{port}"
        self._address = f"{host}:{port}"
        self._config = directory / "registry.yml"
        self._settings = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(directory / "storage")},
                "maintenance": {"readonly": {"enabled": read_only}},
            },
            "http": {"addr": self._address},
        }
        command = ["docker-registry", "serve", str(self._config)]
        environment = {"OTEL_TRACES_EXPORTER": "none"}
        self._daemon = Daemon(
            "registry",
            directory,
            command,
            marker=str(self._config),
            netns=netns,
            environment=environment,
        )

    def start(self) -> None:
        """Raises DaemonError."""
        self._config.parent.mkdir(parents=True, exist_ok=True)
        self._config.write_text(json.dumps(self._settings))  # YAML reads JSON
        self._daemon.start(self._answers)

    def stop(self) -> None:
        self._daemon.stop()

    def push(self, containerd: PrivateContainerd, image: str) -> None:
        """From a node that has it. Raises CalledProcessError."""
        upstream, _, name = image.partition("/")
        target = f"{self._address}/{repository(upstream)}/{name}"
        containerd.ctr("images", "push", "--plain-http", target, image)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/v2/", timeout=ANSWER_S):
                return True
        except (urllib.error.URLError, OSError):
            return False
