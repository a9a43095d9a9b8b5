"""The network between places on one machine: a namespace for each, and one in the middle.

Used by `continent` and `site`. Every place (a region, a box) has a network namespace with one link
to the middle, which forwards between them and can drop what two places say to each other, or what
one says to the other, silently, as a broken line does. The machine itself is a place as well,
called `HOST`: whoever runs edgectl there can be cut off like any other. Two of these run side by
side on subnets of their own.

    place --veth-- hub --veth-- place        10.214.N.1 is the machine, .254 the hub
                    |
                  HOST
"""

import ipaddress
import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from devcluster import network, residue
from devcluster.containerd import machine_lock

HOST = "host"
CANDIDATES = ipaddress.IPv4Network("10.214.0.0/16")
NAMESPACES = Path("/run/netns")
FIRST_PLACE = 11
END_S = 5.0

_RULES = """
table inet polder {
  set blocked { type ipv4_addr . ipv4_addr; }
  set off { type ipv4_addr; }
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip saddr @off drop
    ip daddr @off drop
    ip saddr . ip daddr @blocked drop
  }
}
"""

Pair = tuple[str, str]


class Backbone:
    """`name` begins the names of everything on the machine; `record` is the file that knows it."""

    def __init__(self, name: str, record: Path, places: Sequence[str]) -> None:
        assert len(name) <= 12 and all(len(place) <= 15 for place in places)
        self.name = name
        self.places = tuple(places)
        self._record = record
        self.subnet = ""
        if record.exists():
            self.subnet = json.loads(record.read_text())["subnet"]

    def netns(self, place: str) -> str:
        """The path of a place's namespace."""
        return str(NAMESPACES / f"{self.name}-{place}")

    @property
    def hub(self) -> str:
        return self.netns("hub")

    def address(self, place: str) -> str:
        """Where a place is reached, from everywhere that is not cut off from it."""
        number = 1 if place == HOST else FIRST_PLACE + self.places.index(place)
        return self._numbered(number)

    def _numbered(self, number: int) -> str:
        return str(ipaddress.ip_network(self.subnet)[number])

    # --- up and down -----------------------------------------------------------------------------

    def start(self) -> None:
        """Make what is missing. Raises OSError with what a tool said."""
        with machine_lock():
            if not self.subnet:
                routes = network.run(["ip", "-4", "route", "show", "table", "all"], "")
                self.subnet = network.free_subnet(routes, CANDIDATES)
                self._record.parent.mkdir(parents=True, exist_ok=True)
                self._record.write_text(json.dumps({"subnet": self.subnet}))
            if not Path(self.hub).exists():
                self._make_hub()
        for place in self.places:
            if not Path(self.netns(place)).exists():
                self._make_place(place)

    def _make_hub(self) -> None:
        network.run(["ip", "netns", "add", Path(self.hub).name], "")
        for setting in ("all/forwarding", "default/forwarding"):
            path = f"/proc/sys/net/ipv4/conf/{setting}"
            network.run(["sh", "-c", f"echo 1 > {path}"], self.hub)
        network.run(["nft", _RULES], self.hub)
        self._link(HOST, inside=self.name, netns="")
        gateway = self._numbered(254)
        network.run(["ip", "route", "add", self.subnet, "via", gateway, "dev", self.name], "")

    def _make_place(self, place: str) -> None:
        netns = self.netns(place)
        network.run(["ip", "netns", "add", Path(netns).name], "")
        network.run(["ip", "link", "set", "lo", "up"], netns)
        self._link(place, inside="eth0", netns=netns)
        gateway = self._numbered(254)
        network.run(["ip", "route", "add", "default", "via", gateway, "dev", "eth0"], netns)

    def _link(self, place: str, *, inside: str, netns: str) -> None:
        """A veth pair: in the hub it has the place's name, in the place the name `inside`."""
        address, gateway = self.address(place), self._numbered(254)
        hub = Path(self.hub).name
        where = ["netns", Path(netns).name] if netns else []
        peer = ["peer", "name", place, "netns", hub]
        network.run(["ip", "link", "add", "name", inside, *where, "type", "veth", *peer], "")
        network.run(["ip", "address", "add", f"{gateway}/32", "dev", place], self.hub)
        network.run(["ip", "link", "set", "dev", place, "up"], self.hub)
        network.run(["ip", "address", "add", f"{address}/32", "dev", inside], netns)
        network.run(["ip", "link", "set", "dev", inside, "up"], netns)
        network.run(["ip", "route", "add", f"{address}/32", "dev", place], self.hub)
        network.run(["ip", "route", "add", f"{gateway}/32", "dev", inside], netns)

    def stop(self) -> None:
        """End what still runs in the namespaces, and take them away with their links."""
        for netns in [*map(self.netns, self.places), self.hub]:
            name = Path(netns).name
            if not Path(netns).exists():
                continue
            residue.kill_namespace(name, END_S)
            network.run(["ip", "netns", "delete", name], "", check=False)
        network.run(["ip", "link", "delete", self.name], "", check=False)
        self._record.unlink(missing_ok=True)
        self.subnet = ""

    # --- broken lines ----------------------------------------------------------------------------

    def blocked(self) -> set[Pair]:
        """Pairs of which one or both hear nothing of the other, each once, sorted."""
        return {_pair(*way) for way in self._dropped()}

    def _dropped(self) -> set[Pair]:
        """Sender and receiver of what is dropped."""
        listed = json.loads(network.run(["nft", "-j", "list", "table", "inet", "polder"], self.hub))
        names = {self.address(place): place for place in (HOST, *self.places)}
        found = set()
        for item in listed["nftables"]:
            if item.get("set", {}).get("name") != "blocked":
                continue
            for element in item["set"].get("elem", ()):
                source, target = element["concat"]
                found.add((names[source], names[target]))
        return found

    def block(self, pairs: Iterable[Pair]) -> None:
        """Also of connections that exist."""
        self._edit("add", _both_ways(pairs))

    def deafen(self, place: str, to: str) -> None:
        """It hears nothing of the other, which still hears it."""
        self._edit("add", {(to, place)})

    def unblock(self, pairs: Iterable[Pair]) -> None:
        self._edit("delete", _both_ways(pairs) & self._dropped())

    def switch(self, place: str, *, on: bool) -> None:
        """Its power: while it is off nothing comes or goes, whatever else is blocked and mended."""
        command = f"{'delete' if on else 'add'} element inet polder off {{ {self.address(place)} }}"
        network.run(["nft", command], self.hub, check=not on)  # it may be on

    def isolate(self, group: Collection[str]) -> None:
        """The places in the group hear each other and nobody else."""
        others = [place for place in (HOST, *self.places) if place not in group]
        self.block(itertools.product(group, others))

    def heal(self, *places: str) -> None:
        """Everything, or every broken line of these places."""
        blocked = self.blocked()
        self.unblock({pair for pair in blocked if not places or set(pair) & set(places)})

    def _edit(self, verb: str, ways: Iterable[Pair]) -> None:
        elements = [f"{self.address(source)} . {self.address(to)}" for source, to in ways]
        if elements:  # all at once
            command = f"{verb} element inet polder blocked {{ {', '.join(elements)} }}"
            network.run(["nft", command], self.hub)


def _pair(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


def _both_ways(pairs: Iterable[Pair]) -> set[Pair]:
    return {way for pair in pairs for way in (pair, pair[::-1])}
