"""A site of three nodes is cut off, loses one, and heals itself while you watch.

    python examples/isolation/run.py           # builds it, as root; shows all of it; removes it
    python examples/isolation/run.py --keep    # leaves it, to look at
    python examples/isolation/run.py down      # stops and removes what is left

Ends with exit code 1 if something was not as it should be. See README.md.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from devcluster import preflight
from devcluster.boxes import CommandError
from devcluster.containerd import ContainerdError
from devcluster.daemon import DaemonError
from devcluster.register import Register
from devcluster.site import LocalSite

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from view import LEDGER, NAMES, View  # noqa: E402 - the module beside this one

DIRECTORY = Path("/var/lib/polder-isolation")
WATCH_S = 12.0
HEALED_S = 10.0


def build(site: LocalSite, register_at: Callable[[], str]) -> None:
    began = time.monotonic()
    site.start(told=lambda what: print(f"{time.monotonic() - began:5.1f} s  {what}"))
    print(f"{time.monotonic() - began:5.1f} s  two workloads")
    text = (HERE / "workloads.yaml").read_text().replace("$REGISTER", register_at())
    print(site.edgectl("apply", "-f", "-", stdin=text).strip())
    for name in NAMES.values():
        site.edgectl("wait", f"workload/{name}", "--for=ready", "--timeout", "60s")
    print(f"{time.monotonic() - began:5.1f} s  it all runs\n")


def story(site: LocalSite, view: View, seconds: float) -> list[str]:
    """Everything that happens. Returns what was wrong."""
    wrong = []
    view.show(min(5.0, seconds))
    print("--- the uplink is cut: no orchestrator anywhere")
    site.cut_uplink()
    view.uplink = "cut"
    view.show(min(5.0, seconds))
    (victim,) = view.where(LEDGER)
    print(f"--- {victim} loses its power")
    view.off.add(victim)
    site.kill_node(victim)
    view.show(seconds)
    for port, name in NAMES.items():
        if len(view.where(port)) != 1:
            wrong.append(f"{name} runs on {view.where(port) or 'no node'} after {seconds:.0f} s")
    holders = {port: view.where(port) for port in NAMES}
    print(f"--- {victim} is switched on")
    site.power_on(victim)
    view.off.discard(victim)
    view.show(seconds)
    print("--- the uplink is back")
    site.heal()
    view.uplink = "up"
    view.show(seconds)
    for port, name in NAMES.items():
        if view.where(port) != holders[port]:
            wrong.append(f"{name} moved from {holders[port]} to {view.where(port)}")
    return wrong


def adopted(site: LocalSite, holders: dict[int, list[str]]) -> list[str]:
    """What the orchestrator says of it now."""
    print()
    for words in ("get nodes,workloads,replicas", "events --limit 12"):
        print(f"$ edgectl {words}")
        print(site.edgectl(*words.split()))
    shown = site.edgectl("get", "replicas")
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    return [
        f"the orchestrator does not know that {NAMES[port]} runs on {nodes[0]}"
        for port, nodes in holders.items()
        if nodes and nodes[0] not in lines.get(f"{NAMES[port]}-0", "")
    ]


def show(site: LocalSite, seconds: float, keep: bool) -> int:
    site.network.start()  # the register listens on it
    with Register(site.observer) as register:
        build(site, lambda: register.endpoint)
        with View(site, register) as view:
            wrong = story(site, view, seconds)
            holders = {port: view.where(port) for port in NAMES}
        wrong += adopted(site, holders)
        overlaps, refused = register.overlaps(), register.refused("ledger-0")
    for port, name in NAMES.items():
        gap_s = view.services[port].longest_gap_s
        print(f"{name}: away for {gap_s:.1f} s at most")
        if gap_s > HEALED_S:
            wrong.append(f"{name} was away for {gap_s:.1f} s")
    print(f"ledger: {len(overlaps)} overlaps, {refused} writes with an old epoch")
    wrong += [f"two ran at once: {one}" for one in overlaps]
    for line in wrong:
        print(f"WRONG: {line}")
    if keep:
        print(f"\nit runs on; its logs are in {site.directory}")
        print(
            f"  export EDGECTL_CONFIG={site.admin_context} PATH={Path(sys.executable).parent}:$PATH"
        )
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="a site of three nodes heals itself")
    parser.add_argument("what", nargs="?", default="show", choices=("show", "down"))
    parser.add_argument(
        "--seconds", type=float, default=WATCH_S, help="how long to watch each step"
    )
    parser.add_argument("--keep", action="store_true", help="let it run at the end")
    parser.add_argument("--directory", type=Path, default=DIRECTORY)
    given = parser.parse_args()
    lacking = [*preflight.missing(), *preflight.missing_netns()]
    if lacking:
        raise SystemExit(preflight.reason(lacking))
    site = LocalSite(given.directory)
    if given.what == "down":
        site.stop()
        print("all of it is gone")
        return 0
    if site.is_up:
        raise SystemExit("it runs already: python examples/isolation/run.py down")
    try:
        return show(site, given.seconds, given.keep)
    finally:
        if not given.keep:
            site.stop()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CommandError, DaemonError, ContainerdError, OSError) as error:
        raise SystemExit(f"run.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
