"""`edge-agent tune` and `edge-agent profile`: what the box's profile recommends, applied and shown.

The package's postinst and `hardware/prepare` call `tune`. It may be run again at any time, and on a
box that is none of those that we know it does nothing.
"""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from agent.durable import sync_directory, write_synced
from agent.hardware import shelf, tuning
from agent.hardware.profile import InvalidProfile, Profile

OK, FAILED, WOULD_CHANGE = 0, 1, 3
DECLINED = "etc/polder/no-tuning"


def tune(root: Path, *, check: bool, undo: bool, name: str = "") -> int:
    """Write what the profile wants below `root`, or remove it all. Changed paths go to stdout.

    Nothing is written where an operator made the file DECLINED. Returns OK, FAILED, or
    WOULD_CHANGE with `check`, which changes nothing.
    """
    if not (root / "etc").is_dir():
        return _complain(f"{root} is no root of a system")
    if not undo and (root / DECLINED).exists():
        return OK
    try:
        wanted = {} if undo else tuning.files(_chosen(name))
    except (shelf.NoProfiles, InvalidProfile) as error:
        return _complain(str(error))
    changed, troubles = apply(root, wanted, check=check)
    for path in changed:
        sys.stdout.write(f"{path}\n")
    for trouble in troubles:
        _complain(trouble)
    if troubles:
        return FAILED
    return WOULD_CHANGE if check and changed else OK


def apply(
    root: Path, wanted: Mapping[str, str], *, check: bool = False
) -> tuple[list[str], list[str]]:
    """(paths that changed, what went wrong). A file without our first line is somebody else's."""
    changed, troubles = [], []
    for relative in tuning.PATHS:
        path, text = root / relative, wanted.get(relative)
        try:
            before = path.read_text(errors="replace") if path.exists() else None
            if before == text or (before is not None and not before.startswith(tuning.MARK)):
                continue
            if not check:
                _put(path, text)
            changed.append(str(path))
        except OSError as error:
            troubles.append(f"{path}: {error.strerror or error}")
    return changed, troubles


def _put(path: Path, text: str | None) -> None:
    """Whole or not at all, and durably: a box may lose its supply right now. Raises OSError."""
    if text is None:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another one's drop-in may be in it
            path.parent.rmdir()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    try:
        write_synced(beside, text.encode())
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)  # it is there still when that failed
    sync_directory(path.parent)


def show(name: str, *, every: bool, as_json: bool) -> int:
    """The profile of this box, the one named, or a line on each."""
    try:
        if every:
            profiles, complaints = shelf.load()
            rows = [(p.name, ",".join(p.arch), p.title) for p in profiles.values()]
            _lines(complaints, sys.stderr)
            _lines([f"{a:<22}{b:<14}{c}" for a, b, c in sorted(rows)], sys.stdout)
            return OK
        profile = _chosen(name)
    except (shelf.NoProfiles, InvalidProfile) as error:
        return _complain(str(error))
    facts = plain(profile)
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        shown = {key: _text(value) for key, value in facts.items()}
        _lines([f"{key:<18}{text}" for key, text in shown.items() if text], sys.stdout)
    return OK


def plain(profile: Profile) -> dict[str, object]:
    """As JSON: the keys of its file."""
    facts = asdict(profile)
    return {
        "name": facts.pop("name"),
        "title": facts.pop("title"),
        "class": facts.pop("class_"),
        "accelerator": facts.pop("accelerators"),
        "recognise": facts.pop("rules"),
        **facts,
    }


def _chosen(name: str) -> Profile:
    """Raises NoProfiles and InvalidProfile."""
    if not name:
        profile, complaints = shelf.own_profile()
        _lines(complaints, sys.stderr)
        return profile
    profiles, _ = shelf.load()
    if name not in profiles:
        raise InvalidProfile(f"no profile {name!r}; there are {', '.join(sorted(profiles))}")
    return profiles[name]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={_text(v)}" for k, v in value.items() if v not in ("", 0, (), []))
    if isinstance(value, list | tuple):
        return "; ".join(_text(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _lines(lines: Sequence[str], out: TextIO) -> None:
    out.write("".join(f"{line}\n" for line in lines))


def _complain(message: str) -> int:
    sys.stderr.write(f"edge-agent: {message}\n")
    return FAILED
