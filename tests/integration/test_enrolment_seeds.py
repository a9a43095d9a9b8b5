"""The seeds of a pallet do what they say: real cloud-init, and what Debian's installer runs.

In a copy of this system (`tests/debian_root.py`), with the package beside the seed as on a stick.
cloud-init comes from Debian's archive; of its modules only those run that the seed uses, since the
others would set up the machine.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgectl.enrolment import TOKEN_PATH, seeds
from tests.debian_root import DebianRoot
from tests.integration.test_package import build, builder

pytestmark = [pytest.mark.long, pytest.mark.dpkg, pytest.mark.timeout(900)]

NODE, TOKEN = "edge-007", "polder1.eyJzZWNyZXQiOiAibm90IGEgc2VjcmV0In0"
SEED = "/var/lib/cloud/seed/nocloud"
STICK = "/stick"
ONLY_OURS = """
datasource_list: [NoCloud]
network: {config: disabled}
users: []
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""
# The stick is a folder here: there is no disk with that label.
MOUNT = f"""#!/bin/sh
[ "$*" = "-o ro LABEL=CIDATA /run/polder-seed" ] || exec /usr/bin/mount "$@"
cp {STICK}/* /run/polder-seed
"""
UMOUNT = """#!/bin/sh
[ "$*" = /run/polder-seed ] || exec /usr/bin/umount "$@"
"""
IN_TARGET = """#!/bin/sh
exec "$@"
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheels = tmp_path_factory.mktemp("wheels")
    builder.fetch_wheels("amd64", wheels)
    return build(wheels, tmp_path_factory.mktemp("package"), "amd64")


@pytest.fixture
def root(package: Path) -> Iterator[DebianRoot]:
    """With a stick for boxes of either kind: the other package is none that could be installed."""
    with DebianRoot() as made:
        made.pretend_systemd()
        made.put(f"{STICK}/{package.name}", package.read_bytes())
        made.put(f"{STICK}/{package.name.replace('amd64', 'arm64')}", "of another architecture")
        yield made


def assert_ready_to_join(root: DebianRoot) -> None:
    """With the token where `edge-join.service` looks, for nobody else to read, and the agent."""
    assert root.run("cat", TOKEN_PATH).stdout == f"{TOKEN}\n"
    assert root.run("stat", "-c", "%a %U:%G", TOKEN_PATH).stdout == "600 root:root\n"
    assert root.run("edge-agent", "version").stdout.startswith("edge-agent ")
    assert root.run("dpkg-query", "-W", "-f", "${Status}", "polder-agent").stdout.startswith(
        "install ok installed"
    )


def test_cloud_init_brings_agent_and_token(root: DebianRoot) -> None:
    root.run("apt-get", "update", "-qq")
    root.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "cloud-init")
    for name in ("user-data", "meta-data"):
        root.put(f"{SEED}/{name}", seeds(NODE, TOKEN)[name])
    said = root.run("cloud-init", "schema", "--config-file", f"{SEED}/user-data").stdout
    assert "Valid" in said and "deprecat" not in said.lower()
    root.put("/etc/cloud/cloud.cfg.d/99-only.cfg", ONLY_OURS)
    root.put("/usr/local/bin/mount", MOUNT, 0o755)
    root.put("/usr/local/bin/umount", UMOUNT, 0o755)
    root.calls()
    for stage in (("init", "--local"), ("init",), ("modules", "-m", "config")):
        root.run("unshare", "--uts", "cloud-init", *stage)
    said = root.run("unshare", "--uts", "cloud-init", "modules", "-m", "final").stdout
    assert_ready_to_join(root)
    assert root.run("cat", "/run/cloud-init/result.json").stdout.count("error") <= 1, said
    assert "systemctl start --no-block edge-join.service" in root.calls()
    assert root.run("cat", "/var/lib/cloud/data/instance-id").stdout == f"{NODE}\n"


def test_debians_installer_takes_the_answers_and_its_last_command_works(root: DebianRoot) -> None:
    root.put("/preseed.cfg", seeds(NODE, TOKEN)["preseed.cfg"])
    assert root.run("debconf-set-selections", "--checkonly", "/preseed.cfg").stdout == ""
    root.run("debconf-set-selections", "/preseed.cfg")

    def answer(question: str) -> str:
        asked = f"GET {question}\n".encode()
        code, _, value = root.run("debconf-communicate", "d-i", stdin=asked).stdout.partition(" ")
        assert code == "0", question
        return value.rstrip("\n")

    assert answer("netcfg/get_hostname") == answer("netcfg/hostname") == NODE
    # The installer's shell is busybox's; the new system is mounted at /target.
    root.run("sh", "-c", f"ln -s / /target; ln -s {STICK} /hd-media; apt-get update -qq")
    root.put("/usr/local/bin/in-target", IN_TARGET, 0o755)
    root.run("busybox", "sh", "-c", answer("preseed/late_command"))
    assert_ready_to_join(root)
    assert not root.exists("/var/cache/polder")
