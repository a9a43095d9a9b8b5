"""What this box is for an upgrade: which version runs, on what, and whether it can be exchanged."""

from pathlib import Path

from agent import state_form
from agent.config import STATE_DIR, AgentConfig
from agent.domain.upgrade import Here
from agent.upgrade.files import FLOOR, UpgradeFiles
from agent.upgrade.order import floor_of
from polder import __version__

PREFIX = Path("/opt/polder-agent")
LISTED = Path("/var/lib/dpkg/info/polder-agent.list")
SYSTEMD = Path("/run/systemd/system")
PROGRAM = Path(__file__)


def here(config: AgentConfig, arch: str) -> Here:
    """Cheap: asked whenever something happens."""
    schema = state_form.form_on_disk(config.state_dir)
    floor = floor_of(UpgradeFiles(config.state_dir).read(FLOOR))
    return Here(__version__, arch, schema, unfit(config.state_dir), floor)


def unfit(state_dir: Path) -> str:
    """Why the agent of this box cannot be upgraded from afar; empty: it can."""
    if not PROGRAM.is_relative_to(PREFIX) or not LISTED.exists():
        return "this agent was not installed as Debian's package polder-agent: upgrade it by hand"
    if not SYSTEMD.exists():
        return "systemd does not run here: nobody would install the package"
    if state_dir != STATE_DIR:
        return f"state_dir is {state_dir}, and the installer looks below {STATE_DIR}"
    return ""
