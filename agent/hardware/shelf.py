"""Reads profiles, and what a box says of itself. For the command line alone: it reads TOML.

`agent/main.py` asks once before the agent starts, and hands the running agent only the name.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from agent.hardware.profile import GENERIC, InvalidProfile, Profile, decode
from agent.hardware.recognise import Evidence, recognise
from agent.inventory import Box, architecture, memory_total

OWN = Path("/etc/polder/profiles.d")
CHOSEN = "etc/polder/profile"  # an operator's word, for boxes that say nothing of themselves
FILES_MAX = 256
BYTES_MAX = 64 << 10
DEVICES_MAX = 4096


class NoProfiles(Exception):
    """The profiles that come with the agent are not where it was installed."""


def installed() -> Path:
    """The folder of profiles that came with this agent: of the checkout, or of the environment.

    Raises NoProfiles.
    """
    candidates = (
        Path(__file__).resolve().parents[2] / "hardware" / "profiles",
        Path(sys.prefix) / "share" / "polder" / "profiles",
    )
    for folder in candidates:
        if (folder / f"{GENERIC}.toml").is_file():
            return folder
    raise NoProfiles(f"no hardware profiles in {' or '.join(map(str, candidates))}")


def read(file: Path) -> Profile:
    """Raises OSError and InvalidProfile, which names the file."""
    import tomllib

    with file.open("rb") as source:
        raw = source.read(BYTES_MAX + 1)
    if len(raw) > BYTES_MAX:
        raise InvalidProfile(f"{file}: larger than {BYTES_MAX >> 10} KiB")
    try:
        return decode(tomllib.loads(raw.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidProfile) as error:
        raise InvalidProfile(f"{file}: {error}") from error


def load(shipped: Path | None = None, own: Path = OWN) -> tuple[dict[str, Profile], list[str]]:
    """All profiles by name, and what is wrong with some. One's own replaces a shipped one by name.

    A profile that cannot be read is a complaint and no failure: the box must start all the same.
    Raises NoProfiles.
    """
    profiles: dict[str, Profile] = {}
    complaints = []
    for folder in (shipped or installed(), own):
        try:
            files = sorted(folder.glob("*.toml"))[:FILES_MAX]
        except OSError:
            continue
        for file in files:
            try:
                profile = read(file)
                profiles[profile.name] = profile
            except (OSError, InvalidProfile) as error:
                complaints.append(str(error))
    if GENERIC not in profiles:
        raise NoProfiles(f"no profile named {GENERIC}: {'; '.join(complaints)}")
    return profiles, complaints


def own_profile(box: Box | None = None, shipped: Path | None = None) -> tuple[Profile, list[str]]:
    """Of the box that this runs on, or as CHOSEN says, and complaints. Raises NoProfiles."""
    box = box or Box()
    profiles, complaints = load(shipped, box.root / OWN.relative_to("/"))
    chosen = box.text(CHOSEN)
    if chosen in profiles:
        return profiles[chosen], complaints
    if chosen:
        complaints.append(f"/{CHOSEN}: no profile {chosen[:80]!r}; the box is looked at instead")
    return recognise(gather(box), profiles), complaints


def gather(box: Box) -> Evidence:
    """What the box says of itself."""
    compatible = box.text("proc/device-tree/compatible")
    return Evidence(
        arch=architecture(box),
        memory_bytes=memory_total(box),
        vendor=box.text("sys/class/dmi/id/sys_vendor"),
        product=box.text("sys/class/dmi/id/product_name"),
        compatible=tuple(name for name in compatible.split("\0") if name),
        pci=frozenset(_ids(box, "sys/bus/pci/devices", "vendor", "device")),
        usb=frozenset(_ids(box, "sys/bus/usb/devices", "idVendor", "idProduct")),
    )


def _ids(box: Box, folder: str, vendor: str, device: str) -> Iterator[str]:
    try:
        entries = sorted(path.name for path in (box.root / folder).iterdir())[:DEVICES_MAX]
    except OSError:
        return
    for entry in entries:
        numbers = [
            box.text(f"{folder}/{entry}/{name}").removeprefix("0x").lower()
            for name in (vendor, device)
        ]
        if all(len(number) == 4 for number in numbers):  # an interface of a USB device has none
            yield ":".join(numbers)
