"""Which profile fits a box, by what its firmware and its buses say. Pure.

A name given by the maker of the board decides over what is plugged into it, and more conditions
over fewer: a CPE's modem in a Raspberry Pi leaves it a Raspberry Pi.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.hardware.profile import GENERIC, Profile, Rule

GIB = 1 << 30
# What a condition is worth. Firmware's names outweigh all buses together.
_WORTH = {"compatible": 100, "product": 100, "vendor": 10, "pci": 5, "usb": 3, "arch": 1}
_MEMORY_WORTH = 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """`vendor` and `product` are DMI's, `compatible` the device tree's; ids as `8086:46d1`."""

    arch: str
    memory_bytes: int = 0
    vendor: str = ""
    product: str = ""
    compatible: tuple[str, ...] = ()
    pci: frozenset[str] = frozenset()
    usb: frozenset[str] = frozenset()


def fits(rule: Rule, evidence: Evidence) -> int:
    """How much speaks for it; 0: it does not fit."""
    worth = 0
    conditions: dict[str, Iterable[str]] = {
        "vendor": (evidence.vendor,),
        "product": (evidence.product,),
        "compatible": evidence.compatible,
        "pci": evidence.pci,
        "usb": evidence.usb,
        "arch": (evidence.arch,),
    }
    for name, found in conditions.items():
        wanted = getattr(rule, name)
        if wanted and not any(_same(pattern, text) for pattern in wanted for text in found):
            return 0
        worth += _WORTH[name] if wanted else 0
    if rule.memory_gib_max:
        if not 0 < evidence.memory_bytes <= rule.memory_gib_max * GIB:
            return 0
        worth += _MEMORY_WORTH
    return worth


def _same(pattern: str, text: str) -> bool:
    """Firmware is written by many hands: letters' case does not count."""
    pattern, text = pattern.lower(), text.lower()
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def recognise(evidence: Evidence, profiles: Mapping[str, Profile]) -> Profile:
    """The profile for which most speaks, of equals the first name; the generic one if none fits.

    Raises KeyError when the generic one is not among them.
    """
    best, worth = profiles[GENERIC], 0
    for name in sorted(profiles):
        profile = profiles[name]
        if evidence.arch not in profile.arch:
            continue
        found = max((fits(rule, evidence) for rule in profile.rules), default=0)
        if found > worth:
            best, worth = profile, found
    return best
