"""Profiles of boxes: the files themselves, reading them strictly, recognising a box, tuning it."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import accelerators
from agent import config as settings
from agent.hardware import shelf, tune_command, tuning
from agent.hardware.profile import InvalidProfile, Profile, decode, numbers
from agent.hardware.recognise import Evidence, recognise
from agent.inventory import Box, machine_id
from tests.unit.test_inventory import put

GIB = 1 << 30
FOLDER = shelf.installed()
PROFILES, COMPLAINTS = shelf.load(FOLDER, own=Path("/nowhere"))
DELL = Evidence("amd64", 256 * GIB, "Dell Inc.", "PowerEdge XR8620t")
PI = Evidence("arm64", 8 * GIB, compatible=("raspberrypi,5-model-b", "brcm,bcm2712"))
CPE = Evidence("arm64", 2 * GIB, compatible=("acme,cpe",), usb=frozenset({"2c7c:0801"}))


def raw(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())


def test_all_files_are_read_and_named_as_they_say() -> None:
    assert COMPLAINTS == []
    assert {file.stem for file in FOLDER.glob("*.toml")} == set(PROFILES)
    assert len(PROFILES) == 8


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: str(p.name))
def test_every_number_has_a_source_or_is_called_an_estimate(profile: Profile) -> None:
    if profile.name == "generic":
        return
    assert profile.power.idle_watts and profile.power.full_watts
    assert profile.cooling.limit_celsius and profile.cooling.kind
    assert profile.watchdog.device and profile.watchdog.timeout_s
    assert profile.rules and profile.cores and profile.memory_gib and profile.disk
    for key in (*numbers(profile), "cores", "memory_gib"):
        told = {key, key.partition(".")[0]} & {*profile.estimates, *profile.sources}
        assert told or (key == "memory_gib" and profile.name == "cpe-5g-2gib"), key


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: str(p.name))
def test_its_reserve_is_what_agent_toml_takes(profile: Profile) -> None:
    reserve = profile.reserve
    kept = settings.reserved(reserve.cpu, reserve.memory, reserve.disk)
    smallest = int(min(profile.memory_gib, default=1) * GIB)
    assert 0 < kept.memory.of(smallest) <= smallest // 2
    assert kept.cpu.of(min(profile.cores, default=1) * 1000) > 0


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: str(p.name))
def test_the_agent_finds_the_accelerators_that_a_profile_promises(
    profile: Profile, tmp_path: Path
) -> None:
    for option in profile.accelerators:
        assert set(option.cdi) <= set(accelerators.DEFAULT_DEVICES[option.resource])
        for n, node in enumerate(option.nodes):
            root = tmp_path / f"{option.resource.partition('/')[2]}-{n}"
            put(root, {node.lstrip("/").replace("[0-9]*", "0").replace("*", "128"): ""})
            assert [a.resource for a in accelerators.find(root, {})[0]] == [option.resource], node


@pytest.mark.parametrize(
    ("evidence", "name"),
    [
        (PI, "raspberry-pi-5"),
        (Evidence("arm64", compatible=("nvidia,p3701-0000", "nvidia,tegra234")), "jetson-orin"),
        (Evidence("arm64", compatible=("maker,carrier", "brcm,bcm2712")), "raspberry-pi-5"),
        (Evidence("amd64", vendor="AZW", pci=frozenset({"8086:46d1"})), "intel-n100-mini-pc"),
        (Evidence("amd64", vendor="AZW", pci=frozenset({"8086:46d4"})), "intel-n100-mini-pc"),
        (Evidence("arm64", vendor="GIGABYTE", pci=frozenset({"1def:e100"})), "ampere-altra-server"),
        (DELL, "dell-xr8000"),
        (Evidence("amd64", vendor="HPE", product="ProLiant e910 Blade"), "hpe-edgeline"),
        (Evidence("amd64", vendor="HPE", product="ProLiant e920t"), "hpe-edgeline"),
        (CPE, "cpe-5g-2gib"),
        # What is plugged in does not make another box of it.
        (replace(PI, memory_bytes=2 * GIB, usb=CPE.usb), "raspberry-pi-5"),
        (replace(CPE, memory_bytes=8 * GIB), "generic"),
        # An LTE modem makes no 5G CPE.
        (replace(CPE, usb=frozenset({"2cb7:0104"})), "generic"),
        (replace(CPE, memory_bytes=0), "generic"),
        (replace(DELL, vendor="dell inc."), "dell-xr8000"),
        (replace(DELL, vendor="Somebody"), "generic"),
        (replace(DELL, product="PowerEdge R740"), "generic"),
        (replace(PI, arch="amd64"), "generic"),
        (Evidence("riscv64"), "generic"),
        (Evidence("amd64"), "generic"),
    ],
)
def test_a_box_is_recognised(evidence: Evidence, name: str) -> None:
    assert recognise(evidence, PROFILES).name == name


def test_the_box_says_what_it_is(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/meminfo": "MemTotal: 1900000 kB\n",
            "proc/device-tree/compatible": "acme,cpe\0mediatek,mt6890\0",
            "sys/class/dmi/id/sys_vendor": "Acme\n",
            "sys/bus/pci/devices/0000:00:00.0/vendor": "0x14C3\n",
            "sys/bus/pci/devices/0000:00:00.0/device": "0x4d75\n",
            "sys/bus/usb/devices/1-1/idVendor": "2c7c\n",
            "sys/bus/usb/devices/1-1/idProduct": "0900\n",
            "sys/bus/usb/devices/1-1:1.0/bInterfaceClass": "ff\n",
        },
    )
    found = shelf.gather(Box(root=tmp_path, machine="aarch64"))
    assert found == Evidence(
        "arm64",
        1_900_000 * 1024,
        vendor="Acme",
        compatible=("acme,cpe", "mediatek,mt6890"),
        pci=frozenset({"14c3:4d75"}),
        usb=frozenset({"2c7c:0900"}),
    )
    assert recognise(found, PROFILES).name == "cpe-5g-2gib"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "green"}, "colour: unknown"),
        ({"power": {"idle": 3}}, "power.idle: unknown"),
        ({"power": {"idle_watts": -1}}, "power.idle_watts: expected a number"),
        ({"power": {"idle_watts": 9, "full_watts": 3}}, "less than idle_watts"),
        ({"watchdog": {"longest_s": 15, "timeout_s": 60}}, "longer than the hardware"),
        ({"tpm": {"fitted": "perhaps", "device": ""}}, "none of built-in"),
        ({"tpm": {"fitted": "none"}}, "something is missing"),
        ({"arch": ["riscv64"]}, "none of amd64, arm64"),
        ({"recognise": [{}]}, "fit every box"),
        ({"recognise": [{"pci": ["8086"]}]}, "not like 8086:46d1"),
        ({"estimates": ["power.idle"]}, "no number of this profile"),
        ({"reserve": {"cpu": "1", "memory": "lots", "disk": "1%"}}, "reserve.memory"),
        ({"accelerator": [{"resource": "x", "what": "", "nodes": ["hailo"], "cdi": []}]}, "/dev"),
        ({"name": "Big Box"}, "name"),
        ({"cores": [1.5]}, "whole number"),
        ({"disk": "all"}, "double brackets"),
    ],
)
def test_a_profile_that_is_wrong_is_refused_with_its_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidProfile, match=said):
        decode({**raw("raspberry-pi-5"), **change})


def test_ones_own_profile_replaces_a_shipped_one_and_a_bad_one_is_left_out(tmp_path: Path) -> None:
    own = (FOLDER / "dell-xr8000.toml").read_text().replace('memory = "2Gi"', 'memory = "6Gi"')
    (tmp_path / "ours.toml").write_text(own)
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "huge.toml").write_text("#" * (shelf.BYTES_MAX + 1))
    profiles, complaints = shelf.load(FOLDER, tmp_path)
    assert profiles["dell-xr8000"].reserve.memory == "6Gi"
    assert len(complaints) == 2 and "bad.toml" in complaints[0] and "larger" in complaints[1]


def test_an_operators_word_counts_more_than_the_boxs(tmp_path: Path) -> None:
    put(tmp_path, {"proc/device-tree/compatible": "nvidia,tegra234\0"})
    box = Box(root=tmp_path, machine="aarch64")
    assert shelf.own_profile(box, FOLDER)[0].name == "jetson-orin"
    put(tmp_path, {"etc/polder/profile": "cpe-5g-2gib\n"})
    assert shelf.own_profile(box, FOLDER) == (PROFILES["cpe-5g-2gib"], [])
    put(tmp_path, {"etc/polder/profile": "toaster\n"})
    profile, complaints = shelf.own_profile(box, FOLDER)
    assert profile.name == "jetson-orin" and "toaster" in complaints[0]


def test_without_the_generic_one_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(shelf.NoProfiles, match="generic"):
        shelf.load(tmp_path, tmp_path)


def test_what_the_profile_recommends_is_kept_back_unless_the_file_says_otherwise() -> None:
    kept = settings.reserved("2", "4Gi", "10%")
    config = settings.parse_file('[reserved]\nmemory = "1Gi"\n', kept_back=kept)
    assert config.reserved == replace(kept, memory=settings.Share(1 << 30))
    assert settings.parse_file("").reserved == settings.Reserved()


def test_the_long_running_agent_carries_none_of_it() -> None:
    """Memory: it is told the name of its profile and no more."""
    code = "import sys, agent.service; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in said.stdout.split() if name.startswith("agent.")]
    assert "agent.service" in loaded
    assert not [name for name in loaded if name.startswith(("agent.hardware", "agent.doctor"))]
    assert "tomllib" not in said.stdout.split()


def test_two_agents_of_one_box_are_two_and_copies_of_a_disk_are_one(tmp_path: Path) -> None:
    put(tmp_path, {"etc/machine-id": "0123456789abcdef0123456789abcdef\n"})
    first = machine_id(Box(root=tmp_path))
    assert first == machine_id(Box(root=tmp_path)) and len(first) == 64
    assert first != machine_id(Box(root=tmp_path, state_dir=Path("/srv/second")))


# --- tuning -----------------------------------------------------------------------------------


def test_tuning_a_pi_arms_the_watchdog_and_spares_the_flash() -> None:
    made = tuning.files(PROFILES["raspberry-pi-5"])
    assert "RuntimeWatchdogSec=15\n" in made[tuning.WATCHDOG]
    assert "Storage=volatile\nRuntimeMaxUse=32M\n" in made[tuning.JOURNAL]
    assert "vm.dirty_expire_centisecs = 6000\n" in made[tuning.SYSCTL]
    assert "Type=tmpfs" in made[tuning.TMP_MOUNT]
    assert set(made) == set(tuning.PATHS)


def test_an_unknown_box_is_left_as_it_is() -> None:
    assert tuning.files(PROFILES["generic"]) == {}


def test_tuning_twice_changes_nothing_and_undo_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tune(**how: bool) -> tuple[int, int]:
        given = {"check": False, "undo": False, **how}
        (tmp_path / "etc").mkdir(exist_ok=True)
        code = tune_command.tune(tmp_path, name="raspberry-pi-5", **given)
        return code, len(capsys.readouterr().out.splitlines())

    assert tune(check=True) == (tune_command.WOULD_CHANGE, 5)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert tune() == (0, 5)
    assert (tmp_path / tuning.SYSCTL).stat().st_mode & 0o777 == 0o644
    assert tune() == tune(check=True) == (0, 0)
    assert tune(undo=True) == (0, 5)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert tune(undo=True) == (0, 0)


def test_what_somebody_else_wrote_stays(tmp_path: Path) -> None:
    put(tmp_path, {tuning.JOURNAL: "[Journal]\nStorage=persistent\n"})
    changed, troubles = tune_command.apply(tmp_path, tuning.files(PROFILES["raspberry-pi-5"]))
    assert len(changed) == 4 and not troubles
    assert (tmp_path / tuning.JOURNAL).read_text() == "[Journal]\nStorage=persistent\n"
    tune_command.apply(tmp_path, {})
    assert (tmp_path / tuning.JOURNAL).exists()


def test_purging_the_package_knows_every_file_that_tuning_writes() -> None:
    sources = Path(__file__).resolve().parents[2]
    script = (sources / "hardware" / "package" / "postrm").read_text()
    assert all(f"/{path}" in script for path in tuning.PATHS) and tuning.MARK in script


def test_a_root_that_is_none_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typo = tmp_path / "imgae"
    code = tune_command.tune(typo, check=False, undo=False, name="raspberry-pi-5")
    assert code == tune_command.FAILED and not typo.exists()
    assert "imgae is no root of a system" in capsys.readouterr().err


def test_tuning_can_be_declined(tmp_path: Path) -> None:
    put(tmp_path, {tune_command.DECLINED: ""})
    assert tune_command.tune(tmp_path, check=False, undo=False, name="raspberry-pi-5") == 0
    assert not (tmp_path / tuning.WATCHDOG).exists()


def test_another_profile_takes_away_what_the_first_set(tmp_path: Path) -> None:
    tune_command.apply(tmp_path, tuning.files(PROFILES["raspberry-pi-5"]))
    tune_command.apply(tmp_path, tuning.files(PROFILES["ampere-altra-server"]))
    assert not (tmp_path / tuning.SYSCTL).exists()
    assert "RuntimeWatchdogSec=60" in (tmp_path / tuning.WATCHDOG).read_text()


def test_a_place_that_cannot_be_written_is_told_and_the_rest_is_done(tmp_path: Path) -> None:
    put(tmp_path, {"etc/sysctl.d": "a file where a folder belongs"})
    changed, troubles = tune_command.apply(tmp_path, tuning.files(PROFILES["raspberry-pi-5"]))
    assert len(changed) == 4 and len(troubles) == 1 and "sysctl.d" in troubles[0]
