"""What can be seen of a `site.LocalSite` from outside, whether or not anybody reaches it.

Shared by the end-to-end tests, `bench takeover` and examples/isolation: two workloads that fail
over, who answers for them, and what is still missing until the site is whole again.
"""

import http.client
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from agent import status_file
from devcluster.client import workload
from devcluster.image import HELLO, WRITER
from devcluster.site import LocalSite

ASK_S = 1.0
PAUSE_S = 0.005


def shared(name: str, port: int, *, standbys: int = 2, **failover: Any) -> dict[str, Any]:
    """A page of which at least one is to be there. `failover`: more of its fields."""
    manifest = workload(name, image=HELLO, host_port=port)
    manifest["spec"]["failover"] = {"standbys": standbys, **failover}
    return manifest


def exclusive(
    name: str, port: int, register: str, *, standbys: int = 2, deaf: bool = False, **failover: Any
) -> dict[str, Any]:
    """A page of which at most one may be there; it writes to the register at that endpoint.

    deaf: it does not end when it is asked to.
    """
    environment = {"REGISTER": register, **({"DEAF": "yes"} if deaf else {})}
    env = [{"name": key, "value": value} for key, value in environment.items()]
    manifest = workload(name, image=WRITER, host_port=port, env=env)
    manifest["spec"]["failover"] = {"standbys": standbys, "exclusive": True, **failover}
    return manifest


def answers(address: str, port: int, timeout_s: float = ASK_S) -> bool:
    """One request, answered with 200."""
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def answering(site: LocalSite, port: int, nodes: Iterable[str] = ()) -> list[str]:
    """The nodes where the port answers; all are asked if none is named."""
    found: list[str] = []

    def ask(node: str) -> None:
        if answers(site.address(node), port):
            found.append(node)

    _at_once(ask, nodes or site.nodes)
    return sorted(found)


def first_answer(
    site: LocalSite, ports: Collection[int], nodes: Collection[str], since: float, give_up_s: float
) -> dict[int, float]:
    """Port -> seconds from `since` (monotonic) to its first 200 from one of these nodes.

    A port that nobody answered within `give_up_s` is not in it.
    """
    found: dict[int, float] = {}

    def ask(way: tuple[int, str]) -> None:
        port, node = way
        while port not in found and time.monotonic() - since < give_up_s:
            if answers(site.address(node), port):
                found.setdefault(port, time.monotonic() - since)
            time.sleep(PAUSE_S)

    _at_once(ask, [(port, node) for port in ports for node in nodes])
    return found


def _at_once(work: Callable[[Any], None], things: Iterable[Any]) -> None:
    threads = [threading.Thread(target=work, args=(thing,), daemon=True) for thing in things]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def told(site: LocalSite, node: str) -> Mapping[str, Any]:
    """What the agent there says of itself; see agent/status_file.py."""
    return status_file.read(site.agents[node].state_dir)


def lacking(site: LocalSite, ports: Collection[int]) -> list[str]:
    """Why the site is not whole: every agent hears every other, and every port has one answer.

    Empty: it is whole.
    """
    wrong = []
    for node in site.nodes:
        if not site.agents[node].pid:
            wrong.append(f"no agent runs on {node}")
            continue
        said = told(site, node)
        if said.get("pid") != site.agents[node].pid:
            wrong.append(f"the agent of {node} has not said anything yet")
            continue
        peers = said.get("peers", {})
        deaf_to = [other for other in site.nodes if other != node and not peers.get(other)]
        wrong += [f"{node} does not hear {other}" for other in deaf_to]
    for port in ports:
        found = answering(site, port)
        if len(found) != 1:
            wrong.append(f"port {port} is answered by {' and '.join(found) or 'nobody'}")
    return wrong


def not_able(site: LocalSite, replica: str) -> list[str]:
    """Standbys of the replica that could not take it over, and why, as they say."""
    return [
        f"{node}: {one['reason']}"
        for node in site.nodes
        for one in told(site, node).get("standbys", ())
        if one["replica"] == replica and not one["able"]
    ]
