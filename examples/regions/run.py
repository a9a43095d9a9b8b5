"""Three regions and two sites on this machine; kill a region, and watch that nothing happens.

    python examples/regions/run.py                 # builds it all, as root; deploys a service
    python examples/regions/run.py kill REGION     # its power goes; watch for a while
    python examples/regions/run.py cut REGION      # its lines are broken; it runs on
    python examples/regions/run.py heal            # power and lines are back
    python examples/regions/run.py watch
    python examples/regions/run.py down            # stops and removes all of it

`kill`, `cut`, `heal` and `watch` show a line each second, and end with exit code 1 if a request to
a page failed meanwhile. See README.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from devcluster import preflight
from devcluster.boxes import CommandError
from devcluster.containerd import ContainerdError
from devcluster.continent import Continent
from devcluster.daemon import DaemonError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from view import PORT, View  # noqa: E402 - the module beside this one

DIRECTORY = Path("/var/lib/polder-regions")
WATCH_S = 40.0
SETTLE_S = 5.0


def up(continent: Continent) -> int:
    began = time.monotonic()
    continent.start(told=lambda what: print(f"{time.monotonic() - began:5.1f} s  {what}"))
    print(f"{time.monotonic() - began:5.1f} s  a page on each site")
    print(continent.edgectl("apply", "-f", str(HERE / "web.yaml")).strip())
    continent.edgectl("wait", "workload/web", "--for=ready", "--timeout", "60s")
    print(f"{time.monotonic() - began:5.1f} s  it all runs\n")
    where(continent)
    return 0


def where(continent: Continent) -> None:
    """What there is, and how to talk to it."""
    for region in continent.regions.values():
        namespace = Path(region.netns).name
        members = ", ".join(f"{m.name} on {m.endpoint}" for m in region.members)
        print(f"region {region.name:<11} {members}; etcd on {region.etcd.endpoint}; in {namespace}")
    for box, site in continent.boxes.items():
        address = continent.network.address(box)
        namespace = Path(continent.network.netns(box)).name
        print(f"site {site:<13} {box}; its page on http://{address}:{PORT}/; in {namespace}")
    print(f"\nlogs are in {continent.directory}")
    print(f"  export EDGECTL_CONFIG={continent.admin_context}")
    print(f"  export PATH={Path(sys.executable).parent}:$PATH")
    print("  edgectl get regions; edgectl get nodes,workloads,replicas")


def broken(continent: Continent, what: str, region: str, seconds: float) -> int:
    """Kill or cut the region in front of everybody's eyes."""
    before = continent.containers()
    with View(continent) as view:
        view.show(min(SETTLE_S, seconds))
        print(f"--- {what} {region}")
        view.counted.longest_gap_s = 0.0
        continent.vanish(region) if what == "kill" else continent.cut(region)
        view.show(seconds)
        wrong = []
        if view.leader.rpartition("-")[0] in ("", region):
            wrong.append(f"nobody leads in place of {region}: {view.leader}")
        if {region, "-"} & set(view.sessions().values()):
            wrong.append(f"a box has no session elsewhere: {view.sessions()}")
    if continent.containers() != before:
        wrong.append("a container was restarted")
    print(f"\n{region} stays so until: python examples/regions/run.py heal", end="")
    return report(view, wrong)


def heal(continent: Continent, regions: list[str], seconds: float) -> int:
    with View(continent) as view:
        continent.heal()
        for region in regions:
            if not continent.regions[region].is_running:
                print(f"--- start {region}")
                continent.revive(region, wait=False)
        view.show(seconds)
    return report(view, [])


def watch(continent: Continent, seconds: float) -> int:
    with View(continent) as view:
        view.show(seconds)
    return report(view, [])


def report(view: View, wrong: list[str]) -> int:
    counted = view.counted
    print(
        f"\n{counted.visits} requests, {counted.failed} failed; {counted.writes} writes, "
        f"at most {counted.longest_gap_s:.1f} s between two"
    )
    wrong = [*wrong, *counted.errors]
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def down(continent: Continent) -> int:
    continent.stop()
    print("all of it is gone")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="three regions and two sites on this machine")
    made.add_argument(
        "what", nargs="?", default="up", choices=("up", "kill", "cut", "heal", "watch", "down")
    )
    made.add_argument("region", nargs="?", default="", help="for kill, cut and heal")
    made.add_argument("--seconds", type=float, default=WATCH_S, help="how long to watch")
    made.add_argument("--directory", type=Path, default=DIRECTORY)
    return made


def main() -> int:
    given = parser().parse_args()
    lacking = [*preflight.missing(), *preflight.missing_netns(), *preflight.missing_etcd()]
    if lacking:
        raise SystemExit(preflight.reason(lacking))
    continent = Continent(given.directory)
    if given.what in ("up", "down"):
        return up(continent) if given.what == "up" else down(continent)
    if not continent.regions:
        raise SystemExit("it does not run yet: python examples/regions/run.py")
    if given.what == "watch":
        return watch(continent, given.seconds)
    if given.region not in continent.regions and (given.region or given.what != "heal"):
        raise SystemExit(f"name a region: {', '.join(continent.regions)}")
    if given.what == "heal":
        named = [given.region] if given.region else list(continent.regions)
        return heal(continent, named, given.seconds)
    return broken(continent, given.what, given.region, given.seconds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CommandError, DaemonError, ContainerdError, OSError) as error:
        raise SystemExit(f"run.py: {error}") from error
    except KeyboardInterrupt:  # os._exit: a visitor may wait for an answer that does not come
        print("\nall of it runs on as it is; heal mends it, down removes it", flush=True)
        os._exit(130)
