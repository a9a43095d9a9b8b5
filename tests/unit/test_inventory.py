"""Boxes that nobody has at hand, as trees of files."""

from pathlib import Path

import pytest

from agent.accelerators import UnreadableSpec, find, read_spec
from agent.config import Reserved, Share
from agent.inventory import Box, UsageSampler, boot_id, hardware_id, machine_id, take

STAT = "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 50 0 50 400\ncpu1 50 0 50 400\nintr 1\n"
NVIDIA_YAML = """\
---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/renderD128
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/renderD128
  name: GPU-1f2e
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
  name: "1"
- name: all
kind: nvidia.com/gpu
"""


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def pi(tmp_path: Path) -> Box:
    """A Raspberry Pi 5 with a Hailo accelerator, as far as files go."""
    put(
        tmp_path,
        {
            "proc/stat": STAT,
            "proc/meminfo": "MemTotal: 8000000 kB\nMemFree: 1 kB\nMemAvailable: 6000000 kB\n",
            "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-2712\n",
            "proc/sys/kernel/hostname": "ward-3\n",
            "proc/sys/kernel/random/boot_id": "b00t\n",
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/net/dev": "h\nh\n eth0: 10 0 0 0 0 0 0 0 20 0\n  lo: 9 0 0 0 0 0 0 0 9 0\n"
            "vethab: 7 0 0 0 0 0 0 0 7 0\n",
            "etc/os-release": 'NAME=x\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
            "dev/hailo0": "",
            "sys/class/thermal/thermal_zone0/temp": "51200\n",
            "sys/class/hwmon/hwmon0/temp1_input": "48000\n",
            "sys/class/power_supply/BAT0/type": "Battery\n",
            "sys/class/power_supply/BAT0/capacity": "83\n",
            "sys/class/power_supply/BAT0/status": "Discharging\n",
            "sys/class/power_supply/mouse/type": "Battery\n",
            "sys/class/power_supply/mouse/scope": "Device\n",
        },
    )
    return Box(root=tmp_path, disk=tmp_path / "not" / "there", machine="aarch64")


def test_an_arm_board(pi: Box) -> None:
    found = take(pi, Reserved(disk=Share(1 << 20)))
    assert (found.arch, found.model) == ("arm64", "Raspberry Pi 5 Model B Rev 1.0")
    assert found.os == "Debian GNU/Linux 12 (bookworm)"
    assert found.kernel == "6.6.31+rpt-rpi-2712" and found.hostname == "ward-3"
    assert found.capacity.cpu_millis == 2000
    assert found.capacity.memory_bytes == 8_000_000 * 1024
    assert found.reserved.cpu_millis == 100
    assert found.allocatable.cpu_millis == 1900
    assert found.allocatable.disk_bytes == found.capacity.disk_bytes - (1 << 20)
    assert found.allocatable.devices == {"polder.eu/npu": 1}
    assert found.accelerators[0].id == "/dev/hailo0"
    assert "0123456789abcdef" not in found.machine_id and len(found.machine_id) == 64
    assert found.hardware_id == ""
    assert boot_id(pi) == "b00t"
    assert take(pi, Reserved()) == take(pi, Reserved())


def test_use_is_that_since_the_sample_before(pi: Box) -> None:
    sampler = UsageSampler(pi)
    first = sampler.sample()
    assert first.cpu_millis == 400
    put(pi.root, {"proc/stat": STAT.replace("cpu  100 0 100 800", "cpu  200 0 100 800")})
    second = sampler.sample()
    assert second.cpu_millis == 2000
    assert sampler.sample().cpu_millis == 0
    assert second.memory_bytes == 2_000_000 * 1024
    assert (second.network_rx_bytes, second.network_tx_bytes) == (10, 20)
    assert second.temperature_celsius == 51.2
    assert (second.battery_percent, second.on_battery) == (83, True)


def test_a_pc_without_sensors(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "proc/stat": STAT,
            "proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 50 kB\n",
            "sys/class/dmi/id/sys_vendor": "Dell Inc.\n",
            "sys/class/dmi/id/product_name": "XR8610t\n",
            "sys/class/dmi/id/product_uuid": "4c4c4544\n",
        },
    )
    box = Box(root=tmp_path, disk=tmp_path, machine="x86_64")
    found = take(box, Reserved())
    assert (found.arch, found.model, found.os) == ("amd64", "Dell Inc. XR8610t", "Linux")
    assert found.allocatable.memory_bytes == 0
    assert machine_id(box) and not found.accelerators
    usage = UsageSampler(box).sample()
    assert (usage.temperature_celsius, usage.battery_percent) == (0.0, -1)


UUID = "sys/class/dmi/id/product_uuid"
SERIAL = "sys/class/dmi/id/product_serial"
BOARD = "sys/class/dmi/id/board_serial"
TREE = "proc/device-tree/serial-number"


def test_the_board_has_a_name_that_is_not_of_the_disk(tmp_path: Path) -> None:
    dmi = {UUID: "4C4C4544-0042-3510-8054-C4C04F335932\n", SERIAL: "B5TC5Y2\n"}
    disk = {"etc/machine-id": "0123456789abcdef0123456789abcdef\n"}
    one = Box(root=put(tmp_path / "one", {**dmi, **disk}))
    first = hardware_id(one)
    assert len(first) == 64 and "4c4c4544" not in first
    other = Box(root=put(tmp_path / "other", {**dmi, **disk, UUID: "another-uuid\n"}))
    assert machine_id(one) == machine_id(other) and hardware_id(other) not in ("", first)
    # Other case, another disk, another agent of that box: the same board.
    put(one.root, {UUID: dmi[UUID].lower(), "etc/machine-id": "f" * 32 + "\n"})
    assert first == hardware_id(Box(root=one.root, state_dir=Path("/srv/second")))
    assert machine_id(one) != first


@pytest.mark.parametrize("path", [SERIAL, BOARD, TREE])
@pytest.mark.parametrize(
    "uuid",
    [
        "",
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "fefefefe-fefe-fefe-fefe-fefefefefefe",
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "To be filled by O.E.M.",
        "Default string",
        "None",
        "Not Specified",
        "0123456789",
    ],
)
def test_what_no_factory_wrote_names_no_board(tmp_path: Path, path: str, uuid: str) -> None:
    box = Box(root=put(tmp_path, {UUID: f"{uuid}\n", BOARD: "Default string\n"}))
    assert hardware_id(box) == ""
    put(tmp_path, {path: "10000000abcdef01\0"})
    named = hardware_id(box)
    assert named
    put(tmp_path, {UUID: "4c4c4544-0042-3510-8054-c4c04f335932"})
    assert hardware_id(box) not in ("", named)


def test_a_board_that_tells_nothing_has_no_name(tmp_path: Path) -> None:
    assert hardware_id(Box(root=tmp_path)) == ""


def test_a_cdi_name_wins_over_the_device_node(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "etc/cdi/nvidia.yaml": NVIDIA_YAML,
            "dev/nvidia0": "",
            "dev/nvidia1": "",
            "dev/nvidiactl": "",
            "dev/dri/renderD128": "",
            "dev/dri/renderD129": "",
            "dev/dri/renderD130": "",
            "sys/class/drm/renderD129/device/vendor": "0x10de\n",
            "sys/class/drm/renderD130/device/vendor": "0x8086\n",
        },
    )
    found, complaints = find(tmp_path, {})
    assert [a.id for a in found] == ["/dev/dri/renderD130", "nvidia.com/gpu=0", "nvidia.com/gpu=1"]
    assert [a.vendor for a in found] == ["intel", "nvidia", "nvidia"]
    assert not complaints


def test_one_card_without_cdi_is_not_counted_twice(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "dev/nvidia0": "",
            "dev/dri/renderD128": "",
            "sys/class/drm/renderD128/device/vendor": "0x10de\n",
            "dev/accel/accel0": "",
            "sys/class/accel/accel0/device/vendor": "0x8086\n",
            "dev/apex_0": "",
        },
    )
    found, _ = find(tmp_path, {"acme.example/radio": ("/dev/radio*",)})
    assert [(a.resource, a.id) for a in found] == [
        ("polder.eu/gpu", "/dev/nvidia0"),
        ("polder.eu/npu", "/dev/accel/accel0"),
        ("polder.eu/tpu", "/dev/apex_0"),
    ]


def test_a_jetson_whose_graphics_are_part_of_the_chip_has_one_gpu(tmp_path: Path) -> None:
    """Its render node has no PCI vendor; older releases of nvidia-ctk name it `all` and no more."""
    put(
        tmp_path,
        {
            "etc/cdi/nvidia.yaml": "kind: nvidia.com/gpu\ndevices:\n- name: all\n",
            "dev/dri/renderD128": "",
            "sys/class/drm/renderD128/device/uevent": "DRIVER=tegra\nOF_NAME=host1x\n"
            "OF_COMPATIBLE_0=nvidia,tegra234-host1x\nOF_COMPATIBLE_N=1\n",
        },
    )
    found, complaints = find(tmp_path, {})
    assert [(a.id, a.vendor) for a in found] == [("nvidia.com/gpu=all", "nvidia")]
    assert not complaints


def test_graphics_of_a_board_are_named_after_who_made_the_chip(tmp_path: Path) -> None:
    uevent = "DRIVER=v3d\nOF_COMPATIBLE_0=brcm,2712-v3d\n"
    put(tmp_path, {"dev/dri/renderD128": "", "sys/class/drm/renderD128/device/uevent": uevent})
    put(
        tmp_path, {"dev/dri/renderD129": "", "sys/class/drm/renderD129/device/uevent": "DRIVER=x\n"}
    )
    found, _ = find(tmp_path, {})
    assert [(a.resource, a.vendor) for a in found] == [
        ("polder.eu/gpu", "brcm"),
        ("polder.eu/gpu", ""),
    ]


def test_json_specs_and_complaints(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "var/run/cdi/a.json": '{"kind": "intel.com/npu", "devices": [{"name": "n0"}]}',
            "var/run/cdi/b.json": '{"kind": 3}',
            "var/run/cdi/c.yaml": "{kind: x}",
            "var/run/cdi/readme.txt": "",
        },
    )
    found, complaints = find(tmp_path, {})
    assert [a.id for a in found] == ["intel.com/npu=n0"]
    assert len(complaints) == 2
    assert complaints[0].startswith("/var/run/cdi/b.json: not a CDI spec")


@pytest.mark.parametrize(
    "text",
    [
        "kind: a.b/c\ndevices: [{name: x}]\n",
        "kind: *anchor\ndevices:\n- name: x\n",
        "kind: a.b/c\ndevices:\n\t- name: x\n",
        "kind: a.b/c\ndevices:\n- containerEdits: {}\n",
        "kind: a.b/c\n",
        "devices:\n- name: x\n",
        "",
    ],
)
def test_yaml_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    file = put(tmp_path, {"x.yaml": text}) / "x.yaml"
    with pytest.raises(UnreadableSpec):
        read_spec(file)
