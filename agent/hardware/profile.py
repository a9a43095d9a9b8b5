"""What is known of a class of boxes, and the form of its file (`hardware/profiles/*.toml`). Pure.

`shelf.py` reads the files, `recognise.py` says which one a box is, `tuning.py` what is set on it.
Files are read strictly: a misspelt key in the middle of a fleet is found out when a box overheats.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from polder.manifest.quantity import cpu_millis, memory_bytes

GENERIC = "generic"
ARCHITECTURES = ("amd64", "arm64")
FITTED = ("built-in", "optional", "none", "unknown")
JOURNALS = ("volatile", "persistent", "")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_PERCENT = re.compile(r"(100|[1-9]?[0-9])%")


class InvalidProfile(ValueError):
    """A profile cannot be used; the message names the key."""


@dataclass(frozen=True, slots=True)
class Rule:
    """All that is given must fit; of a list any one. Texts of DMI may end in `*`.

    `compatible` are names of the device tree, `pci` and `usb` are vendor:device in hexadecimal.
    """

    vendor: tuple[str, ...] = ()
    product: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    pci: tuple[str, ...] = ()
    usb: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    memory_gib_max: float = 0.0


@dataclass(frozen=True, slots=True)
class AcceleratorOption:
    """What a box of the class may hold: as `agent/accelerators.py` will find it."""

    resource: str
    what: str
    nodes: tuple[str, ...]
    cdi: tuple[str, ...]
    pci: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tpm:
    fitted: str
    device: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Power:
    """0: not known."""

    idle_watts: float = 0.0
    full_watts: float = 0.0
    supply_watts: float = 0.0


@dataclass(frozen=True, slots=True)
class Cooling:
    """`limit_celsius`: from there on it throttles or must not run; of the air if `inlet`."""

    limit_celsius: float = 0.0
    kind: str = ""
    inlet: bool = False


@dataclass(frozen=True, slots=True)
class Watchdog:
    """`timeout_s` is what systemd is told, 0: nothing; the hardware can count `longest_s`."""

    device: str = ""
    driver: str = ""
    longest_s: int = 0
    timeout_s: int = 0


@dataclass(frozen=True, slots=True)
class Reserve:
    """What is to be kept back for the system, as `[reserved]` of agent.toml writes it."""

    cpu: str
    memory: str
    disk: str


@dataclass(frozen=True, slots=True)
class DiskPart:
    mount: str
    size: str
    filesystem: str
    options: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """What survives a lost supply and spares the flash. Empty, False and 0: leave it as it is.

    `write_back_s`: how long the kernel may gather writes that nobody asked to be durable.
    """

    journal: str = ""
    journal_max: str = ""
    tmp_in_memory: bool = False
    write_back_s: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """`estimates` names the numbers that no data sheet gives; `sources` says where others are from.

    `cores` and `memory_gib` are what boxes of the class are sold with.
    """

    name: str
    title: str
    class_: str
    arch: tuple[str, ...]
    cores: tuple[int, ...]
    memory_gib: tuple[float, ...]
    accelerators: tuple[AcceleratorOption, ...]
    tpm: Tpm
    power: Power
    cooling: Cooling
    watchdog: Watchdog
    reserve: Reserve
    disk: tuple[DiskPart, ...]
    estimates: tuple[str, ...]
    sources: Mapping[str, str]
    rules: tuple[Rule, ...] = ()
    tuning: Tuning = Tuning()
    kernel_arguments: tuple[str, ...] = ()


# --- reading ----------------------------------------------------------------------------------


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw.isprintable() or len(raw) > 300:
        raise ValueError("expected a text of one line, at most 300 characters")
    return raw


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw < 1_000_000:
        raise ValueError("expected a number that is not negative")
    return float(raw)


def _whole(raw: object) -> int:
    number = _number(raw)
    if number != int(number):
        raise ValueError("expected a whole number")
    return int(number)


def _flag(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError("expected true or false")
    return raw


def _list(item: Callable[[object], Any]) -> Callable[[object], tuple[Any, ...]]:
    def parse(raw: object) -> tuple[Any, ...]:
        if not isinstance(raw, list) or len(raw) > 64:
            raise ValueError("expected a list, of 64 at most")
        return tuple(item(one) for one in raw)

    return parse


def _matching(pattern: re.Pattern[str], example: str) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if not pattern.fullmatch(_text(raw)):
            raise ValueError(f"{raw!r} is not like {example}")
        return str(raw)

    return parse


def _one_of(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if raw not in allowed:
            raise ValueError(f"{raw!r} is none of {', '.join(filter(None, allowed))}")
        return str(raw)

    return parse


def _amount(measure: Callable[[object], int]) -> Callable[[object], str]:
    def parse(raw: object) -> str:
        if not _PERCENT.fullmatch(_text(raw)):
            measure(raw)
        return str(raw)

    return parse


def _device(raw: object) -> str:
    if raw != "" and not _text(raw).startswith("/dev/"):
        raise ValueError(f"{raw!r} is not below /dev")
    return str(raw)


_texts, _ids = _list(_text), _list(_matching(_ID, "8086:46d1"))
_arch = _list(_one_of(ARCHITECTURES))
_size = re.compile(r"[1-9][0-9]*[KMG]")

_FORMS: dict[type, dict[str, Callable[[object], Any]]] = {
    Rule: {
        "vendor": _texts,
        "product": _texts,
        "compatible": _texts,
        "pci": _ids,
        "usb": _ids,
        "arch": _arch,
        "memory_gib_max": _number,
    },
    AcceleratorOption: {
        "resource": _text,
        "what": _text,
        "nodes": _list(_device),
        "cdi": _texts,
        "pci": _ids,
    },
    Tpm: {"fitted": _one_of(FITTED), "device": _device, "note": _text},
    Power: {"idle_watts": _number, "full_watts": _number, "supply_watts": _number},
    Cooling: {"limit_celsius": _number, "kind": _text, "inlet": _flag},
    Watchdog: {"device": _device, "driver": _text, "longest_s": _whole, "timeout_s": _whole},
    Reserve: {
        "cpu": _amount(cpu_millis),
        "memory": _amount(memory_bytes),
        "disk": _amount(memory_bytes),
    },
    DiskPart: {"mount": _text, "size": _text, "filesystem": _text, "options": _text},
    Tuning: {
        "journal": _one_of(JOURNALS),
        "journal_max": _matching(_size, "64M"),
        "tmp_in_memory": _flag,
        "write_back_s": _whole,
    },
}


def _record(kind: type, where: str, raw: object) -> Any:
    if not isinstance(raw, dict):
        raise InvalidProfile(f"{where}: expected a table")
    form = _FORMS[kind]
    found = {}
    for key, value in raw.items():
        if key not in form:
            raise InvalidProfile(f"{where}.{key}: unknown; known are {', '.join(form)}")
        try:
            found[key] = form[key](value)
        except ValueError as error:
            raise InvalidProfile(f"{where}.{key}: {error}") from error
    try:
        return kind(**found)
    except TypeError:
        raise InvalidProfile(f"{where}: something is missing of {', '.join(form)}") from None


def _records(kind: type, where: str, raw: object) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise InvalidProfile(f"{where}: expected tables in double brackets")
    return tuple(_record(kind, f"{where}[{i}]", item) for i, item in enumerate(raw))


def decode(data: Mapping[str, object]) -> Profile:
    """A profile from a file's tables. Raises InvalidProfile."""
    rest = dict(data)

    def take(key: str, parse: Callable[[object], Any], default: object = None) -> Any:
        if key not in rest and default is None:
            raise InvalidProfile(f"{key}: missing")
        try:
            return parse(rest.pop(key, default))
        except InvalidProfile:
            raise
        except ValueError as error:
            raise InvalidProfile(f"{key}: {error}") from error

    def table(key: str, kind: type, default: object = None) -> Any:
        return take(key, lambda raw: _record(kind, key, raw), default)

    made = Profile(
        name=take("name", _matching(NAME, "intel-n100-mini-pc")),
        title=take("title", _text),
        class_=take("class", _text),
        arch=take("arch", _arch),
        cores=take("cores", _list(_whole)),
        memory_gib=take("memory_gib", _list(_number)),
        accelerators=take(
            "accelerator", lambda raw: _records(AcceleratorOption, "accelerator", raw), []
        ),
        tpm=table("tpm", Tpm),
        power=table("power", Power),
        cooling=table("cooling", Cooling),
        watchdog=table("watchdog", Watchdog),
        reserve=table("reserve", Reserve),
        disk=take("disk", lambda raw: _records(DiskPart, "disk", raw)),
        estimates=take("estimates", _texts),
        sources=take("sources", _sources),
        rules=take("recognise", lambda raw: _records(Rule, "recognise", raw), []),
        tuning=table("tuning", Tuning, {}),
        kernel_arguments=take("kernel_arguments", _texts, []),
    )
    if rest:
        raise InvalidProfile(f"{', '.join(sorted(rest))}: unknown")
    _check(made)
    return made


def _sources(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise ValueError("expected a table")
    return {str(key): _text(value) for key, value in raw.items()}


def _check(profile: Profile) -> None:
    """What no single key can tell. Raises InvalidProfile."""
    if profile.watchdog.timeout_s > profile.watchdog.longest_s:
        raise InvalidProfile("watchdog.timeout_s: longer than the hardware can count (longest_s)")
    if profile.power.full_watts < profile.power.idle_watts:
        raise InvalidProfile("power.full_watts: less than idle_watts")
    known = numbers(profile)
    for key in profile.estimates:
        if key not in known and key not in ("cores", "memory_gib"):
            raise InvalidProfile(f"estimates: {key} is no number of this profile")
    if any(rule == Rule() for rule in profile.rules):
        raise InvalidProfile("recognise: an empty rule would fit every box")


def numbers(profile: Profile) -> dict[str, object]:
    """The numbers that a data sheet may give or not, by their path; those that are given."""
    found: dict[str, object] = {}
    for name in ("power", "cooling", "watchdog", "reserve"):
        part = getattr(profile, name)
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name.endswith(("_watts", "_celsius", "longest_s")) or name == "reserve":
                found |= {f"{name}.{field.name}": value} if value else {}
    return found
