"""The nodes as columns: one numpy array per fact, one row per node.

`plan()` builds one per plan, keeps its free capacity true while it decides, and throws it away.

Rows of one site stand together, and within a site those of one *cell*: nodes that no rule but a
selector can tell apart (same architecture, taints, topology and state). So a question about all
nodes is first asked of the cells, which are few. The order of sites, and of nodes in a cell, is
drawn by the seed from their names: the first of equals is then the tie-break, whatever order the
nodes came in.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from orchestrator.scheduling.policies import Policies
from orchestrator.scheduling.rtt import WITHIN_SITE_MS, great_circle_km, rtt_ms
from orchestrator.scheduling.snapshot import HostPort, Node, Resources, Site, Template
from polder.manifest import Taint
from polder.sovereignty import SiteFacts

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

AMOUNTS = ("cpu_millis", "memory_bytes", "disk_bytes")
CPU, MEMORY, DISK = range(3)
TOPOLOGIES = ("node", "site", "region", "provider", "country")
UNKNOWN = -1
AMOUNT_MAX = 1 << 56
"""More than any node has; sums of a fleet's worth of it stay within 64 bits."""
MEMO_ROWS_MAX = 200_000_000
"""Bytes of masks that one plan keeps."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A column of text as small integers: `values[codes[i]]`; UNKNOWN where it is empty."""

    values: tuple[str, ...]
    codes: Ints

    @staticmethod
    def of(column: Sequence[str]) -> "Codes":
        values = sorted({text for text in column if text})
        number = {text: code for code, text in enumerate(values)}
        codes = [number.get(text, UNKNOWN) for text in column]
        return Codes(tuple(values), np.array(codes, dtype=np.int64))


class NodeTable:
    """Facts never change; `hold` and `release` change what is free. `now`: unix seconds."""

    def __init__(
        self,
        nodes: Iterable[Node],
        sites: Mapping[str, Site] | None = None,
        now: float = 0.0,
        seed: int = 0,
    ) -> None:
        given = list(nodes)
        invalid = [not _is_believable(node.allocatable) for node in given]
        order = _order(given, invalid, seed)
        self.nodes = [given[i] for i in order]
        self.index = {node.name: i for i, node in enumerate(self.nodes)}
        self.size = len(self.nodes)
        self.nowhere = np.zeros(self.size, dtype=np.bool_)
        self._sites = sites or {}
        self.now = now
        self._topologies: dict[str, Codes] = {}
        self._labels: dict[str, npt.NDArray[np.object_]] = {}
        self._facts: dict[str, npt.NDArray[np.object_]] = {}
        self._flags: dict[str, Mask] = {"invalid": np.array([invalid[i] for i in order], bool)}
        self._taint_sets: tuple[list[tuple[Taint, ...]], Ints] | None = None
        self._memo: dict[object, Mask] = {}
        self._rtt: dict[str, Floats] = {}
        self._policies: Policies | None = None
        self._green: Ints | None = None
        self._fill_amounts([invalid[i] for i in order])
        self._make_cells()

    def _fill_amounts(self, invalid: list[bool]) -> None:
        none = Resources()
        given = [
            none if bad or node.allocatable is None else node.allocatable
            for node, bad in zip(self.nodes, invalid, strict=True)
        ]
        self.allocatable: Ints = np.array(
            [[getattr(item, amount) for item in given] for amount in AMOUNTS], dtype=np.int64
        ).reshape(len(AMOUNTS), self.size)
        self.free = self.allocatable.copy()
        # Half each, so that the two shares of cpu and memory add up to one where all is free.
        self.share_of_one = 0.5 / np.maximum(self.allocatable[:2], 1)
        self.devices: dict[str, Ints] = {}
        for i, resources in enumerate(given):
            for name, count in resources.devices.items():
                self._device(name)[i] += count
        # How many hold the port. More than one only when the records themselves conflict.
        self.ports: dict[HostPort, Ints] = {}
        self.load = np.zeros(self.size, dtype=np.int64)

    # --- cells -----------------------------------------------------------------------------------

    def _make_cells(self) -> None:
        self.site_names = sorted({node.site for node in self.nodes})
        number = {name: code for code, name in enumerate(self.site_names)}
        self.site_codes: Ints = np.array([number[n.site] for n in self.nodes], dtype=np.int64)
        starts, before = [], None
        for row, bad in enumerate(self._flags["invalid"].tolist()):
            signature = _signature(self.nodes[row], bad)
            if signature != before:
                starts.append(row)
                before = signature
        self.cell_start: Ints = np.array(starts, dtype=np.int64)
        self.cell_end: Ints = np.append(self.cell_start[1:], self.size)[: len(starts)]
        self.cell_site = self.site_codes[self.cell_start]
        self.cell_of = np.repeat(np.arange(len(starts)), self.cell_end - self.cell_start)
        # Rows whose free capacity changed, for those who keep sums of it.
        self.touched: list[Ints] = []

    # --- facts -----------------------------------------------------------------------------------

    @property
    def policies(self) -> Policies:
        """Over `site_names`; its masks are over cells."""
        if self._policies is None:
            facts = [
                self._sites[name].facts if name in self._sites else SiteFacts(name)
                for name in self.site_names
            ]
            cell_site = self.cell_site  # not the table: with it a cycle, which is freed much later
            self._policies = Policies(facts, self.now, lambda mask: mask[cell_site])
        return self._policies

    def rtt_ms(self, site: str) -> Floats:
        """Estimated round trip from a site to each of `site_names`; NaN where unknown."""
        if site not in self._rtt:
            unknown = Site("", SiteFacts(""))
            places = [self._sites.get(name, unknown) for name in self.site_names]
            here = self._sites.get(site, unknown)
            latitudes, longitudes = (
                np.array([_degrees(getattr(p, axis)) for p in places])
                for axis in ("latitude", "longitude")
            )
            found = rtt_ms(
                great_circle_km(
                    _degrees(here.latitude), _degrees(here.longitude), latitudes, longitudes
                )
            )
            if site in self.site_names:
                found[self.site_names.index(site)] = WITHIN_SITE_MS
            self._rtt[site] = found
        return self._rtt[site]

    def greenness(self) -> Ints:
        """Rank of each of `site_names`, 0 the greenest; what is not declared comes last."""
        if self._green is None:
            keys = []
            for name in self.site_names:
                energy = self._sites[name].facts.energy if name in self._sites else None
                carbon = energy.carbon_intensity_g_per_kwh if energy is not None else None
                renewable = energy.renewable_share if energy is not None else None
                keys.append((carbon is None, carbon or 0.0, renewable is None, -(renewable or 0.0)))
            rank = {key: number for number, key in enumerate(sorted(set(keys)))}
            self._green = np.array([rank[key] for key in keys], dtype=np.int64)
        return self._green

    def memo(self, key: object, compute: Callable[[], Mask]) -> Mask:
        """A mask that facts alone decide, computed once. Do not change the answer."""
        found = self._memo.get(key)
        if found is None:
            found = compute()
            if len(self._memo) * self.size > MEMO_ROWS_MAX:
                self._memo.clear()
            self._memo[key] = found
        return found

    def equal(self, attribute: str, value: object) -> Mask:
        """Where an attribute of the node has the value. Do not change the answer."""

        def compute() -> Mask:
            same = [getattr(node, attribute) == value for node in self.nodes]
            return np.array(same, dtype=np.bool_)

        return self.memo((attribute, value), compute)

    def flags(self, attribute: str) -> Mask:
        """A yes-or-no fact of the nodes. Do not change the answer."""
        if attribute not in self._flags:
            values = [bool(getattr(node, attribute)) for node in self.nodes]
            self._flags[attribute] = np.array(values, dtype=np.bool_)
        return self._flags[attribute]

    def taint_sets(self) -> tuple[list[tuple[Taint, ...]], Ints]:
        """The different sets of taints, and which of them each node has. Fleets have few."""
        if self._taint_sets is None:
            number: dict[tuple[Taint, ...], int] = {}
            codes = [number.setdefault(node.taints, len(number)) for node in self.nodes]
            self._taint_sets = (list(number), np.array(codes, dtype=np.int64))
        return self._taint_sets

    def topology(self, by: str) -> Codes:
        """`by` is one of TOPOLOGIES."""
        if by not in self._topologies:
            attribute = "name" if by == "node" else by
            column = [getattr(node, attribute) for node in self.nodes]
            self._topologies[by] = Codes.of(column)
        return self._topologies[by]

    def label(self, key: str) -> npt.NDArray[np.object_]:
        """The label's values; None where a node lacks it."""
        if key not in self._labels:
            column = np.empty(self.size, dtype=np.object_)
            column[:] = [node.labels.get(key) for node in self.nodes]
            self._labels[key] = column
        return self._labels[key]

    # --- what is free ----------------------------------------------------------------------------

    def device(self, name: str) -> Ints:
        """Free devices of one resource name."""
        found = self.devices.get(name)
        return found if found is not None else np.zeros(self.size, dtype=np.int64)

    def taken(self, port: HostPort) -> Ints:
        found = self.ports.get(port)
        return found if found is not None else np.zeros(self.size, dtype=np.int64)

    def hold(self, row: int, template: Template, times: int = 1) -> None:
        """Take the template's resources and ports; `times` -1 gives them back."""
        request = template.request
        self.free[CPU, row] -= times * request.cpu_millis
        self.free[MEMORY, row] -= times * request.memory_bytes
        self.free[DISK, row] -= times * request.disk_bytes
        self.load[row] += times
        for name, count in request.devices.items():
            self._device(name)[row] -= times * count
        for port in template.host_ports:
            self._port(port)[row] += times
        self.touched.append(np.array([row], dtype=np.int64))

    def hold_many(self, rows: Ints, takes: Ints, template: Template) -> None:
        """`takes[i]` replicas on `rows[i]`; no row twice."""
        request = template.request
        for column, amount in enumerate(AMOUNTS):
            asked = getattr(request, amount)
            if asked:
                self.free[column, rows] -= takes * asked
        self.load[rows] += takes
        for name, count in request.devices.items():
            self._device(name)[rows] -= takes * count
        for port in template.host_ports:
            self._port(port)[rows] += takes
        self.touched.append(rows)

    def release(self, row: int, template: Template) -> None:
        self.hold(row, template, times=-1)

    def has_room(self, row: int, template: Template) -> bool:
        request = template.request
        return (
            all(
                getattr(request, amount) == 0 or self.free[column, row] >= getattr(request, amount)
                for column, amount in enumerate(AMOUNTS)
            )
            and all(self.device(name)[row] >= count for name, count in request.devices.items())
            and not any(self.taken(port)[row] for port in template.host_ports)
        )

    def ties(self, salt: str) -> npt.NDArray[np.uint64]:
        """A number per node that orders equals; it depends on names, never on their order."""
        mixed = self._name_hashes ^ np.uint64(crc32(salt.encode()))
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing; wraps by intent
        return mixed ^ (mixed >> np.uint64(29))

    @property
    def _name_hashes(self) -> npt.NDArray[np.uint64]:
        if not hasattr(self, "_hashes"):
            names = [node.name.encode() for node in self.nodes]
            hashes = [(crc32(name) << 32) | crc32(name, 0x5BD1E995) for name in names]
            self._hashes = np.array(hashes, dtype=np.uint64)
        return self._hashes

    def _device(self, name: str) -> Ints:
        if name not in self.devices:
            self.devices[name] = np.zeros(self.size, dtype=np.int64)
        return self.devices[name]

    def _port(self, port: HostPort) -> Ints:
        if port not in self.ports:
            self.ports[port] = np.zeros(self.size, dtype=np.int64)
        return self.ports[port]


def _order(nodes: list[Node], invalid: list[bool], seed: int) -> list[int]:
    sites = {node.site for node in nodes}
    drawn = {site: (crc32(site.encode(), seed & 0xFFFFFFFF), site) for site in sites}
    keys = [
        (
            drawn[node.site],
            node.arch,
            tuple((t.key, t.effect, t.value) for t in node.taints),
            node.liveness.value,
            (node.unschedulable, node.draining, node.deleting, node.not_ready, bad, node.cordoned),
            (node.region, node.country, node.provider),
            crc32(node.name.encode(), seed & 0xFFFFFFFF),
            node.name,
        )
        for node, bad in zip(nodes, invalid, strict=True)
    ]
    return sorted(range(len(nodes)), key=keys.__getitem__)


def _signature(node: Node, invalid: bool) -> tuple[object, ...]:
    return (
        node.site,
        node.arch,
        node.taints,
        node.liveness,
        node.unschedulable,
        node.draining,
        node.deleting,
        node.not_ready,
        node.cordoned,
        invalid,
        node.region,
        node.country,
        node.provider,
    )


def _is_believable(resources: Resources | None) -> bool:
    """Whole numbers that a machine can have. None, a node that never told, is no lie."""
    if resources is None:
        return True
    for amount in (resources.cpu_millis, resources.memory_bytes, resources.disk_bytes):
        if type(amount) is not int or not 0 <= amount <= AMOUNT_MAX:
            return False
    counts = resources.devices.values()
    return all(type(count) is int and 0 <= count <= AMOUNT_MAX for count in counts)


def _degrees(value: float | None) -> float:
    return float("nan") if value is None else value


def asks_no_more(new: Template, old: Template) -> bool:
    """A template that asks for no more fits where the old one is, even on a node that shrank."""
    a, b = new.request, old.request
    return (
        a.cpu_millis <= b.cpu_millis
        and a.memory_bytes <= b.memory_bytes
        and a.disk_bytes <= b.disk_bytes
        and all(count <= b.devices.get(name, 0) for name, count in a.devices.items())
        and set(new.host_ports) <= set(old.host_ports)
    )
