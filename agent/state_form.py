"""Which form the agent's durable state has, so that no version reads what it does not know.

`agent/service.py` looks before it reads anything, the package's preinst before anything is unpacked
(`hardware/package/preinst`), and an upgrade before it is begun (`agent/domain/upgrade.py`).

STATE_SCHEMA is raised by a change of any file below STATE that the version before could not read.
The new version then reads both forms, and writes the new one only once `raise_form` was called:
while an upgrade is on trial the box must be able to go back.
"""

from pathlib import Path

from agent.durable import sync_directory, write_synced

STATE_SCHEMA = 1
NAME = "schema"
FIRST = 1  # of versions that wrote no number


class LaterState(Exception):
    """A later version wrote the state; the message says what to do."""


def form_on_disk(state_dir: Path) -> int:
    """FIRST when nothing says otherwise."""
    try:
        text = (state_dir / NAME).read_text().strip()
    except OSError:
        return FIRST
    return int(text) if text.isdecimal() else FIRST


def check(state_dir: Path) -> None:
    """Raises LaterState when this version cannot read the state."""
    found = form_on_disk(state_dir)
    if found > STATE_SCHEMA:
        raise LaterState(
            f"the state in {state_dir} has form {found}, and this version knows forms up to "
            f"{STATE_SCHEMA}: install the version that ran here before, or a later one"
        )


def raise_form(state_dir: Path) -> None:
    """From now on the state has this version's form. Raises OSError."""
    if (state_dir / NAME).exists() and form_on_disk(state_dir) >= STATE_SCHEMA:
        return
    fresh = state_dir / f"{NAME}.new"
    write_synced(fresh, f"{STATE_SCHEMA}\n".encode())
    fresh.replace(state_dir / NAME)
    sync_directory(state_dir)
