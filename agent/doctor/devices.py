"""Accelerators: fitted, driven, and handed out by the runtime. Pure: facts in, findings out."""

from collections import Counter
from collections.abc import Iterator

from agent.doctor.facts import Facts
from agent.doctor.finding import FAILURE, OK, WARNING, Finding

NVIDIA_SPEC = "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`"


def findings(facts: Facts) -> Iterator[Finding]:
    """All of this module; none for a box without accelerators."""
    devices = facts.devices
    troubles = [*_lacking(facts), *_by_cdi(facts)]
    for complaint in devices.complaints:
        troubles.append(
            Finding(
                "devices",
                WARNING,
                f"{complaint}: its devices are not offered",
                f"mend the file, or write it anew, for NVIDIA by {NVIDIA_SPEC}",
            )
        )
    yield from troubles
    if devices.found and not troubles:
        counts = Counter(device.resource for device in devices.found)
        shown = ", ".join(f"{count} {resource}" for resource, count in sorted(counts.items()))
        yield Finding("devices", OK, shown)


def _lacking(facts: Facts) -> Iterator[Finding]:
    """What is plugged in, and has no driver that shows it."""
    resources = {device.resource for device in facts.devices.found}
    for option in facts.profile.accelerators:
        fitted = sorted(facts.devices.pci & set(option.pci))
        if fitted and option.resource not in resources:
            yield Finding(
                "devices",
                WARNING,
                f"{', '.join(fitted)} is plugged in ({option.what}), and there is no "
                f"{' or '.join(option.nodes)}: no {option.resource} is offered",
                "install its maker's driver, and look at `dmesg`",
            )


def _by_cdi(facts: Facts) -> Iterator[Finding]:
    devices = facts.devices
    named = [device.id for device in devices.found if not device.id.startswith("/")]
    objection = facts.runtime.cdi_objection
    if named and objection:
        yield Finding(
            "devices",
            FAILURE,
            f"{', '.join(named)}: {objection}",
            "containerd 1.7 or later with `enable_cdi = true` in the settings of its plugin cri, "
            "or CRI-O",
        )
    bare = [device.id for device in devices.found if device.id.startswith("/dev/nvidia")]
    if bare:
        yield Finding(
            "devices",
            WARNING,
            f"{', '.join(bare)} has no CDI name: containers get it without the driver's libraries",
            f"install nvidia-container-toolkit, then {NVIDIA_SPEC}",
        )
