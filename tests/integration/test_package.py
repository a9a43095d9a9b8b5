"""The agent's package: built twice, installed for real into a copy of this system, and removed."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agent.doctor import gather
from agent.state_form import STATE_SCHEMA
from edgectl.enrolment import TOKEN_PATH
from tests.debian_root import DebianRoot, install

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "hardware" / "systemd"
PROFILES = ROOT / "hardware" / "profiles"
# `systemd-analyze security`, 0 is best. The agent mounts for the runtime: no mount namespace.
EXPOSURE_MAX = {
    "edge-agent": 5.2,
    "edge-switch": 2.6,
    "edge-join": 2.3,
    "edge-tune": 1.6,
    "edge-upgrade": 2.6,
}
# Any of these gives a service a mount namespace of its own, systemd.exec(5).
NAMESPACING = re.compile(
    r"^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|"
    r"Private(Tmp|Devices|Mounts)|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|TemporaryFileSystem|"
    r"BindPaths|RootDirectory|MountFlags|ProcSubset)=",
    re.MULTILINE,
)
FIXED_EPOCH = 1_790_000_000


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "package_build", ROOT / "hardware" / "package" / "build.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["package_build"] = module
    spec.loader.exec_module(module)
    return module


builder = load_builder()


# --- units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", sorted(EXPOSURE_MAX))
def test_units_are_hardened(unit: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager"]
    said = subprocess.run(
        [*command, str(UNITS / f"{unit}.service")], capture_output=True, text=True, check=False
    )
    found = re.search(rf"exposure level for {unit}.service: ([0-9.]+)", said.stdout)
    if found is None:
        pytest.skip(f"needs systemd 250 or later: {said.stderr.strip()[:100]}")
    assert float(found[1]) <= EXPOSURE_MAX[unit]


def test_the_agent_has_no_mount_namespace_and_says_that_it_lives() -> None:
    text = (UNITS / "edge-agent.service").read_text()
    assert NAMESPACING.search(text) is None
    for line in ("Type=notify", "WatchdogSec=30", "KillMode=mixed", "StateDirectoryMode=0700"):
        assert line in text.splitlines()
    switch = (UNITS / "edge-switch.service").read_text().splitlines()
    assert "StateDirectoryMode=0700" in switch
    # The agent's end of their conversation has a name in the network namespace.
    assert "PrivateNetwork=yes" not in switch


def test_seeds_put_a_token_where_the_unit_and_the_doctor_look() -> None:
    unit = (UNITS / "edge-join.service").read_text()
    assert f"ConditionPathExists={TOKEN_PATH}\n" in unit
    assert f"join --token-file {TOKEN_PATH}\n" in unit
    assert f"/{gather.JOIN_TOKEN}" == TOKEN_PATH


# --- building ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For both architectures; the one thing that needs a network."""
    folder = tmp_path_factory.mktemp("wheels")
    for arch in builder.PLATFORMS:
        builder.fetch_wheels(arch, folder)
    return folder


def build(wheels: Path, out: Path, arch: str, version: str = "0.1.0-1") -> Path:
    python = builder.right_python("")
    order = builder.Order(arch, out, version, FIXED_EPOCH, wheels, python, "gzip")
    made = builder.build(order)
    assert isinstance(made, Path)
    return made


@pytest.fixture(scope="module")
def package(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(wheels, tmp_path_factory.mktemp("first"), "amd64")


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another version."""
    folder = tmp_path_factory.mktemp("newer")
    tree, made = folder / "tree", folder / "newer.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("Version: 0.1.0-1", "Version: 0.1.0-2"))
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", tree, made], check=True, capture_output=True)
    return made


def content(package: Path) -> dict[str, str]:
    """Mode, owner, size and time by path."""
    listing = subprocess.run(
        ["dpkg-deb", "-c", package], capture_output=True, text=True, check=True
    ).stdout
    rows = (line.split(maxsplit=5) for line in listing.splitlines())
    return {row[5].partition(" -> ")[0]: f"{row[0]} {row[1]}" for row in rows}


def test_the_same_sources_give_the_same_bytes(wheels: Path, package: Path, tmp_path: Path) -> None:
    assert build(wheels, tmp_path, "amd64").read_bytes() == package.read_bytes()


def test_for_arm64_it_is_the_same_but_for_machine_code(
    wheels: Path, package: Path, tmp_path: Path
) -> None:
    found, here = content(build(wheels, tmp_path, "arm64")), content(package)
    code = [path for path in found if path.endswith(".so") or ".so." in path]
    assert code and all("x86_64" not in path for path in found)
    plain = {p for p in found if ".so" not in p and ".dist-info" not in p}
    assert plain == {p for p in here if ".so" not in p and ".dist-info" not in p}
    assert set(found.values()) <= {
        "drwxr-xr-x root/root", "-rw-r--r-- root/root", "-rwxr-xr-x root/root",
        "lrwxrwxrwx root/root",
    }  # fmt: skip


def test_only_what_runs_on_a_box_is_in_it(package: Path) -> None:
    paths = content(package)
    inside = "./opt/polder-agent/lib/python3.11/site-packages/"
    for name in ("agent/main.py", "polder/v1/agent_pb2.py", "grpc/__init__.py"):
        assert inside + name in paths
        compiled = f"{Path(name).parent}/__pycache__/{Path(name).stem}.cpython-311.pyc"
        assert inside + compiled in paths
    for name in ("orchestrator/", "edgectl/", "devcluster/", "numpy/", "pip/"):
        assert inside + name not in paths
    assert "./opt/polder-agent/share/polder/profiles/generic.toml" in paths


def test_it_says_which_form_of_state_it_writes_and_that_of_itself(package: Path) -> None:
    fields = "Version", "Polder-State-Schema"
    said = subprocess.run(
        ["dpkg-deb", "-f", package, *fields], capture_output=True, text=True, check=True
    ).stdout
    assert said == f"Version: 0.1.0-1\nPolder-State-Schema: {STATE_SCHEMA}\n"


def test_a_version_that_dpkg_or_a_store_would_not_take_is_refused(
    wheels: Path, tmp_path: Path
) -> None:
    order = builder.Order("amd64", tmp_path, "v0.2/1", FIXED_EPOCH, wheels, "python3")
    with pytest.raises(builder.BuildFailed, match=r"0\.2\.0-1"):
        builder.build(order)


def test_a_wheel_that_is_not_the_one_we_know_is_refused(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    shutil.copytree(wheels, folder)
    victim = next(folder.glob("psutil-*x86_64*"))
    victim.write_bytes(victim.read_bytes() + b"\0")
    with pytest.raises(builder.BuildFailed, match="psutil"):
        build(folder, tmp_path, "amd64")


# --- installing -------------------------------------------------------------------------------


@pytest.fixture
def root() -> Iterator[DebianRoot]:
    with DebianRoot() as made:
        yield made


OWN = """
name = "test-box"
title = "Any box"
class = "test"
arch = ["amd64"]
cores = [1]
memory_gib = [1]
tpm = {fitted = "none", device = ""}
power = {}
cooling = {}
watchdog = {device = "/dev/watchdog0", driver = "x", longest_s = 60, timeout_s = 60}
estimates = []
[[recognise]]
arch = ["amd64"]
[reserve]
cpu = "100m"
memory = "64Mi"
disk = "1%"
[[disk]]
mount = "/"
size = "all"
filesystem = "ext4"
options = ""
[tuning]
journal = "volatile"
journal_max = "8M"
[sources]
"""
WATCHDOG = "/etc/systemd/system.conf.d/60-polder.conf"


@pytest.mark.dpkg
def test_installed_upgraded_removed_and_purged(
    root: DebianRoot, package: Path, newer: Path
) -> None:
    root.pretend_systemd()
    root.put("/etc/polder/profiles.d/own.toml", OWN)
    said = install(root, package)
    assert "cannot" not in said and "not all" not in said
    assert root.calls() == [
        "systemctl daemon-reexec",
        "systemctl try-restart systemd-journald",
        "systemctl daemon-reload",
        "deb-systemd-invoke start edge-switch.service",
        "deb-systemd-invoke start edge-agent.service",
        "deb-systemd-invoke start edge-upgrade.path",
    ]
    assert root.run("stat", "-c", "%a %U", "/var/lib/polder-agent").stdout == "700 root\n"
    assert root.run("edge-agent", "version").stdout == "edge-agent 0.1.0-1\n"
    assert root.run("edge-agent", "profile").stdout.startswith("name              test-box")
    assert "RuntimeWatchdogSec=60" in root.run("cat", WATCHDOG).stdout
    assert root.exists("/etc/systemd/system/multi-user.target.wants/edge-agent.service")
    _doctor_runs(root)

    # The operator's settings survive, and nothing is stopped: containers are the runtime's.
    root.put("/etc/polder/agent.toml", 'log_level = "warning"\n')
    root.put("/var/lib/polder-agent/volumes/ns/r/v/data", "precious")
    root.put("/var/lib/polder-agent/identities/000001/key.pem", "secret", 0o600)
    root.calls()
    install(root, newer, "--force-confold")
    assert root.calls() == [
        "systemctl daemon-reload",
        "deb-systemd-invoke restart edge-switch.service",
        "deb-systemd-invoke restart edge-agent.service",
        "deb-systemd-invoke restart edge-upgrade.path",
    ]
    assert root.run("cat", "/etc/polder/agent.toml").stdout == 'log_level = "warning"\n'

    root.run("dpkg", "--remove", "polder-agent")
    assert [call for call in root.calls() if "stop" in call] == [
        "deb-systemd-invoke stop edge-upgrade.path edge-agent.service",
        "deb-systemd-invoke stop edge-switch.service",
    ]
    assert not root.exists("/opt/polder-agent") and not root.exists("/usr/bin/edge-agent")
    assert root.exists("/var/lib/polder-agent/identities/000001/key.pem")

    said = root.run("dpkg", "--purge", "polder-agent").stdout
    assert "local data of replicas" in said
    assert not root.exists("/var/lib/polder-agent/identities")
    assert root.run("cat", "/var/lib/polder-agent/volumes/ns/r/v/data").stdout == "precious"
    assert not root.exists(WATCHDOG) and not root.exists("/etc/polder/agent.toml")
    assert not root.exists("/etc/systemd/system/multi-user.target.wants/edge-agent.service")


def _doctor_runs(root: DebianRoot) -> None:
    report = json.loads(root.run("edge-agent", "doctor", "-o", "json", code=2).stdout)
    assert report["profile"] == "test-box" and report["exitCode"] == 2
    assert all(f["fix"] for f in report["findings"] if f["level"] != "ok")
    runtime = [f for f in report["findings"] if f["check"] == "runtime"]
    assert runtime[0]["level"] == "failure"


@pytest.mark.dpkg
def test_the_installed_agent_runs_and_is_small_of_modules(root: DebianRoot, package: Path) -> None:
    """The environment below /opt is whole: the long-running process starts from it by itself."""
    install(root, package)
    run = "timeout -s TERM 5 edge-agent run --state-dir /s --runtime simulated --log-format json"
    said = root.run("sh", "-c", f"{run}; true").stdout
    assert "has not joined" in said and "Traceback" not in said
    listed = root.run("edge-agent", "volume", "list", "--state-dir", "/s")
    assert "Traceback" not in listed.stdout


@pytest.mark.dpkg
def test_whoever_is_not_root_is_told_so(root: DebianRoot, package: Path) -> None:
    install(root, package)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "edge-agent")
    assert "run it as root" in root.run(*nobody, "doctor", code=2).stdout
    root.put("/var/lib/polder-agent/upgrade/order.json", "{}")
    root.put("/var/lib/polder-agent/site/memory", "")
    for verb in (("upgrade", "status"), ("switch", "--wait")):
        said = root.run(*nobody, *verb, code=1).stdout
        assert "permission denied: run it as root" in said and "Traceback" not in said
    assert "generic" in root.run(*nobody, "profile").stdout


@pytest.mark.dpkg
def test_a_downgrade_across_a_form_of_the_state_is_refused(
    root: DebianRoot, package: Path, newer: Path
) -> None:
    install(root, newer)
    root.put("/var/lib/polder-agent/schema", f"{STATE_SCHEMA}\n")
    install(root, package)  # the same form: any version goes
    root.put("/elsewhere/schema", f"{STATE_SCHEMA + 1}\n")
    root.put("/etc/polder/agent.toml", '#state_dir = "/x"\nstate_dir = "/elsewhere"\n')
    said = install(root, newer, "--force-confold", code=1)
    assert f"form {STATE_SCHEMA + 1}" in said and "Nothing was changed" in said
    shown = root.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}", "polder-agent")
    assert shown.stdout == "ii 0.1.0-1"
    assert root.run("edge-agent", "version").stdout == "edge-agent 0.1.0-1\n"
    # Whoever forces dpkg has an agent that says so, and reads nothing.
    run = "timeout -s TERM 20 edge-agent run --runtime simulated --log-format json"
    assert f"has form {STATE_SCHEMA + 1}" in root.run("sh", "-c", f"{run}; true").stdout
    root.put("/elsewhere/schema", "garbage\n")
    install(root, newer, "--force-confold")


@pytest.mark.dpkg
def test_without_systemd_it_says_that_nobody_upgrades_it(root: DebianRoot, package: Path) -> None:
    install(root, package)
    said = root.run("edge-agent", "upgrade", "status").stdout
    assert "version      0.1.0-1" in said and "systemd does not run here" in said
    assert "no upgrade is ordered" in root.run("edge-agent", "upgrade", "apply").stdout


@pytest.mark.dpkg
def test_a_full_disk_does_not_leave_it_half_installed(root: DebianRoot, package: Path) -> None:
    root.put("/etc/polder/profiles.d/own.toml", OWN)
    install(root, package)
    root.run("sh", "-c", f"rm -rf /var/lib/polder-agent {WATCHDOG} /etc/systemd/system.conf.d")
    root.run("sh", "-c", "head -c 1G /dev/zero >/filler", code=1)
    script = ("env", "DPKG_MAINTSCRIPT_PACKAGE=polder-agent", "DPKG_MAINTSCRIPT_NAME=postinst")
    script += ("/var/lib/dpkg/info/polder-agent.postinst", "configure", "0.0.9-1")
    said = root.run(*script).stdout
    assert "edge-agent tune" in said
    assert not root.exists(WATCHDOG)
    root.run("rm", "/filler")
    assert root.run(*script).stdout == ""
    assert root.exists(WATCHDOG) and root.exists("/var/lib/polder-agent")


@pytest.mark.dpkg
def test_an_old_kernel_is_told_and_nothing_fails(root: DebianRoot, package: Path) -> None:
    root.put("/usr/local/bin/uname", "#!/bin/sh\necho 4.19.0-27-arm64\n", 0o755)
    said = install(root, package)
    assert "Linux 4.19.0-27-arm64 is older than 5.10" in said
    status = root.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}", "polder-agent").stdout
    assert status.strip() == "ii"


@pytest.mark.dpkg
def test_a_removal_that_was_broken_off_starts_all_that_it_stopped(
    root: DebianRoot, package: Path
) -> None:
    root.pretend_systemd()
    install(root, package)
    root.calls()
    script = ("env", "DPKG_MAINTSCRIPT_PACKAGE=polder-agent", "DPKG_MAINTSCRIPT_NAME=postinst")
    root.run("/var/lib/dpkg/info/polder-agent.prerm", "remove")
    stopped = [unit for call in root.calls() for unit in call.split()[2:]]
    root.run(*script, "/var/lib/dpkg/info/polder-agent.postinst", "abort-remove")
    started = [unit for call in root.calls() for unit in call.split()[2:]]
    assert sorted(stopped) == sorted(started) and len(started) == 3


@pytest.mark.dpkg
def test_tuning_can_be_declined(root: DebianRoot, package: Path) -> None:
    root.put("/etc/polder/profiles.d/own.toml", OWN)
    root.put("/etc/polder/no-tuning", "")
    install(root, package)
    assert not root.exists(WATCHDOG)


# --- prepare ----------------------------------------------------------------------------------


def prepare(root: DebianRoot, *arguments: str, code: int = 0) -> str:
    root.put("/prepare", (ROOT / "hardware" / "prepare").read_bytes(), 0o755)
    return root.run("/prepare", "--no-packages", *arguments, code=code).stdout


@pytest.fixture
def fresh(root: DebianRoot) -> DebianRoot:
    """A box with a runtime, as far as dpkg knows, and nothing else done."""
    answer = '#!/bin/sh\ncase "$*" in *polder-agent*) exec /usr/bin/dpkg-query "$@" ;; esac\n'
    root.put("/usr/local/bin/dpkg-query", f"{answer}echo installed\n", 0o755)
    root.run("rm", "-rf", "/etc/cni/net.d")
    return root


@pytest.mark.dpkg
def test_prepare_does_what_is_missing_once(fresh: DebianRoot, package: Path) -> None:
    fresh.put("/agent.deb", package.read_bytes())
    fresh.put("/boot/firmware/cmdline.txt", "console=tty1 root=PARTUUID=1 rootwait\n")
    fresh.put("/etc/polder/profiles.d/own.toml", OWN)
    # apt-get would look for what the package depends on; dpkg has it all here.
    fresh.put(
        "/usr/local/bin/apt-get", '#!/bin/sh\nfor last; do :; done\nexec dpkg -i "$last"\n', 0o755
    )
    checked = prepare(fresh, "--check", "--deb", "/agent.deb", code=3)
    assert "reboot" not in checked
    assert "would    polder-agent 0.1.0-1" in checked and "would    /etc/sysctl.d" in checked
    assert not fresh.exists("/etc/modules-load.d/polder.conf")
    said = prepare(fresh, "--deb", "/agent.deb")
    assert "changed  polder-agent 0.1.0-1" in said and "reboot" in said
    network = json.loads(fresh.run("cat", "/etc/cni/net.d/10-polder.conflist").stdout)
    assert [plugin["type"] for plugin in network["plugins"]] == ["bridge", "portmap", "firewall"]
    assert fresh.run("cat", "/boot/firmware/cmdline.txt").stdout == (
        "console=tty1 root=PARTUUID=1 rootwait cgroup_enable=memory\n"
    )
    assert fresh.exists(WATCHDOG)
    assert prepare(fresh, "--check", "--deb", "/agent.deb") == ""
    assert prepare(fresh, "--deb", "/agent.deb") == ""


@pytest.mark.dpkg
def test_prepare_leaves_what_somebody_else_wrote(fresh: DebianRoot) -> None:
    fresh.put("/profiles/jetson-orin.toml", (PROFILES / "jetson-orin.toml").read_bytes())
    fresh.put("/etc/cni/net.d/05-own.conflist", "{}")
    fresh.put("/etc/sysctl.d/70-polder.conf", "vm.swappiness = 1\n")
    said = prepare(fresh)
    assert "kept     /etc/cni/net.d/05-own.conflist" in said
    assert "kept     /etc/sysctl.d/70-polder.conf" in said
    # Ansible's `changed_when: stdout != ""`: what was kept is no change.
    assert fresh.run("sh", "-c", "/prepare --no-packages 2>/dev/null").stdout == ""
    assert fresh.run("cat", "/etc/sysctl.d/70-polder.conf").stdout == "vm.swappiness = 1\n"
    assert not fresh.exists("/etc/cni/net.d/10-polder.conflist")
    assert "changed  /etc/polder/profile" in prepare(fresh, "--profile", "jetson-orin")
    assert fresh.run("cat", "/etc/polder/profile").stdout == "jetson-orin\n"
    assert "/etc/polder/profile" not in prepare(fresh, "--profile", "jetson-orin")
    fresh.put("/etc/polder/profiles.d/own.toml", OWN)
    assert "changed  /etc/polder/profile" in prepare(fresh, "--profile", "test-box")


@pytest.mark.dpkg
def test_prepare_says_what_is_wrong(fresh: DebianRoot) -> None:
    assert "unknown argument" in prepare(fresh, "--chek", code=64)
    assert "no such file" in prepare(fresh, "--deb", "/none.deb", code=64)
    assert "--image is for --root" in prepare(fresh, "--image", code=64)
    fresh.put("/profiles/jetson-orin.toml", (PROFILES / "jetson-orin.toml").read_bytes())
    assert "no profile toaster" in prepare(fresh, "--profile", "toaster", code=64)
    assert not fresh.exists("/etc/polder/profile")
    told = prepare(fresh, "--help")
    assert told.startswith("Turns a fresh") and told.endswith("64 usage.\n")
    fresh.put("/usr/local/bin/dpkg-query", "#!/bin/sh\nexit 1\n", 0o755)
    assert "packages are missing: containerd" in prepare(fresh, code=1)
    fresh.put("/etc/os-release", 'ID=fedora\nPRETTY_NAME="Fedora"\n')
    assert "Fedora is not Debian" in prepare(fresh, code=1)


@pytest.mark.dpkg
def test_prepare_shows_why_apt_did_not_install(fresh: DebianRoot, package: Path) -> None:
    """As on Debian 13, which has no Python 3.11."""
    fresh.put("/agent.deb", package.read_bytes())
    reason = "polder-agent : Depends: python3.11 but it is not installable"
    fresh.put("/usr/local/bin/apt-get", f"#!/bin/sh\necho '{reason}'\nexit 100\n", 0o755)
    said = prepare(fresh, "--deb", "/agent.deb", code=1)
    assert reason in said and "failed   polder-agent 0.1.0-1" in said


@pytest.mark.dpkg
def test_prepare_sets_what_it_wrote_on_a_box_that_runs(fresh: DebianRoot) -> None:
    fresh.pretend_systemd()
    fresh.put("/usr/local/bin/modprobe", "#!/bin/sh\n", 0o755)
    prepare(fresh)
    assert "systemd-sysctl /etc/sysctl.d/70-polder.conf" in fresh.calls()
    # Forwarding would switch off the routes that a router of IPv6 announces; pods have IPv4.
    assert "ipv6" not in fresh.run("cat", "/etc/sysctl.d/70-polder.conf").stdout


@pytest.mark.dpkg
def test_an_image_gets_no_machine_id_and_no_identity(fresh: DebianRoot) -> None:
    """The image is the same system again, mounted elsewhere."""
    fresh.run("sh", "-c", "mkdir /image && mount --rbind / /image")
    fresh.put("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    of_one = ("/var/lib/polder-agent/identities/1/key.pem", "/var/lib/polder-agent/plan-current.pb",
              "/etc/polder/join-token", "/var/lib/systemd/random-seed")  # fmt: skip
    for path in (*of_one, "/var/lib/polder-agent/volumes/ns/r/v/data", "/etc/ssh/ssh_host_x_key"):
        fresh.put(path, "x")
    said = prepare(fresh, "--root", "/image", "--image")
    assert "each box makes its own" in said and "identity of a node" in said
    assert "every copy of the image would have the same keys" in said
    assert fresh.exists("/etc/machine-id") and not fresh.run("cat", "/etc/machine-id").stdout
    assert not [path for path in of_one if fresh.exists(path)]
    assert fresh.exists("/var/lib/polder-agent/volumes/ns/r/v/data")
    fresh.run("rm", "-r", "/etc/ssh")
    assert prepare(fresh, "--root", "/image", "--image", "--check") == ""
