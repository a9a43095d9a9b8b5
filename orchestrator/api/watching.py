"""Watch: what exists, a mark, then every change of spec or status.

The hub turns changes of the mirror and of the fleet into keys, and each watcher collects the keys
that it has not read yet: a slow reader gets the newest state of each key once, and costs one entry
per key, never one per change. Values are composed when they are sent.

What is watched ends when the member loses its Store (`losing.py`).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from orchestrator.api.catalog import Catalog, Shown, shows_secrets
from orchestrator.api.losing import Losing
from orchestrator.api.reading import check_scope
from orchestrator.api.selectors import Selector, parse_selector
from orchestrator.api.views import without_age
from orchestrator.api.wire import dump, to_wire
from orchestrator.authz import Caller, may_read
from orchestrator.cache import Change
from orchestrator.domain.liveness import Liveness
from orchestrator.records import AssignmentRecord, NodePlacement, StopRecord, StoredResource
from orchestrator.refusals import exhausted
from orchestrator.store import keys
from polder.manifest import KINDS
from polder.v1 import common_pb2, operator_pb2

COALESCE_S = 0.1
WATCHERS_MAX = 1_000
PENDING_MAX = 50_000
_TICK_S = 1.0

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """What one watcher asked for. `name` empty: all."""

    kind: str
    namespace: str
    name: str
    selector: Selector

    def covers(self, key: Key) -> bool:
        namespace, name = key
        return self.namespace in ("", namespace) and self.name in ("", name)


class Watcher:
    """Keys that changed since they were read. Past the limit it remembers only that all did."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.everything = False
        self.lost = False
        self._keys: dict[Key, None] = {}
        self._news = asyncio.Event()

    def mark(self, key: Key) -> None:
        if self.everything or not self.scope.covers(key):
            return
        self._keys[key] = None
        if len(self._keys) > PENDING_MAX:
            self.everything = True
            self._keys.clear()
        self._news.set()

    def lose(self) -> None:
        """There will be no news here."""
        self.lost = True
        self._news.set()

    async def wait(self) -> tuple[list[Key], bool]:
        """The changed keys, and whether all may have changed; at most every `COALESCE_S`."""
        await self._news.wait()
        await asyncio.sleep(COALESCE_S)
        found, everything = list(self._keys), self.everything
        self._keys.clear()
        self.everything = False
        self._news.clear()
        return found, everything


class WatchHub:
    """One per process. `run` notices what only time changes: nodes that fall silent."""

    def __init__(
        self,
        catalog: Catalog,
        clock: Callable[[], float],
        explained: Callable[[], dict[Key, int]],
        losing: Losing,
    ) -> None:
        """`explained`: the workloads that the leader explains, each with a number that changes
        with its explanation."""
        self._catalog = catalog
        self._clock = clock
        self._explained = explained
        self.losing = losing
        self._watchers: defaultdict[str, set[Watcher]] = defaultdict(set)
        self._touched: set[str] = set()
        self._liveness: dict[str, Liveness] = {}
        self._explanations: dict[Key, int] = {}
        catalog.cache.subscribe(self._on_changes)
        catalog.fleet.subscribe(self._on_touch)

    @property
    def watchers(self) -> int:
        return sum(len(found) for found in self._watchers.values())

    async def watch(
        self, caller: Caller, request: operator_pb2.WatchRequest
    ) -> AsyncIterator[operator_pb2.WatchResponse]:
        """Raises Refused (Forbidden, BadKind, BadSelector, TooManyWatches), and StoreUnavailable
        once the Store is lost. What begins after that goes on, and its reader knows that it is old.
        """
        check_scope(caller, request.kind, request.namespace)
        selector = parse_selector(request.label_selector)
        scope = Scope(request.kind, request.namespace, request.name, selector)
        if self.watchers >= WATCHERS_MAX:
            raise exhausted("TooManyWatches", f"{WATCHERS_MAX} watches are open", "close some")
        watcher = Watcher(scope)
        self._watchers[scope.kind].add(watcher)
        leave = self.losing.subscribe(watcher.lose)
        sent: dict[Key, int] = {}
        try:
            for key in self._initial(caller, scope):
                response = self._difference(caller, scope, key, sent)
                if response is not None:
                    yield response
            yield operator_pb2.WatchResponse(
                type=operator_pb2.WATCH_TYPE_SYNCED, now_ms=self._now_ms()
            )
            while True:
                changed, everything = await watcher.wait()
                if watcher.lost:
                    raise self.losing.refusal()
                if everything:
                    changed = sorted({*self._initial(caller, scope), *sent})
                for key in changed:
                    response = self._difference(caller, scope, key, sent)
                    if response is not None:
                        yield response
        finally:
            leave()
            self._watchers[scope.kind].discard(watcher)

    def _initial(self, caller: Caller, scope: Scope) -> list[Key]:
        if scope.name:
            namespace = scope.namespace
            if KINDS[scope.kind].namespaced and not namespace:
                everywhere = self._catalog.keys(caller, scope.kind, "")
                return [key for key in everywhere if key[1] == scope.name]
            return [(namespace, scope.name)]
        return list(self._catalog.keys(caller, scope.kind, scope.namespace))

    def _difference(
        self, caller: Caller, scope: Scope, key: Key, sent: dict[Key, int]
    ) -> operator_pb2.WatchResponse | None:
        """What the watcher must hear of a key, if anything. Updates `sent`."""
        shown = None
        if may_read(caller, scope.kind, *key):
            shown = self._catalog.get(scope.kind, *key)
        if shown is None or not scope.selector.matches(shown.record.labels):
            if sent.pop(key, None) is None:
                return None
            return self._deleted(scope.kind, key)
        fingerprint = _fingerprint(shown)
        before = sent.get(key)
        if before == fingerprint:
            return None
        sent[key] = fingerprint
        added = before is None
        return operator_pb2.WatchResponse(
            type=operator_pb2.WATCH_TYPE_ADDED if added else operator_pb2.WATCH_TYPE_MODIFIED,
            resource=to_wire(shown.record, shown.status, secrets=shows_secrets(caller, shown)),
            now_ms=self._now_ms(),
        )

    def _deleted(self, kind: str, key: Key) -> operator_pb2.WatchResponse:
        metadata = common_pb2.Metadata(namespace=key[0], name=key[1])
        return operator_pb2.WatchResponse(
            type=operator_pb2.WATCH_TYPE_DELETED,
            resource=common_pb2.Resource(kind=kind, metadata=metadata),
            now_ms=self._now_ms(),
        )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # --- marking -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        ticks = 0
        while True:
            await asyncio.sleep(COALESCE_S)
            ticks += 1
            self.losing.look()
            if not self.watchers:
                self._touched.clear()
                continue
            if ticks >= _TICK_S / COALESCE_S:
                ticks = 0
                self._notice_silence()
                self._notice_explanations()
            touched, self._touched = self._touched, set()
            for node in touched:
                self._mark_node(node)

    def _notice_silence(self) -> None:
        for node in self._catalog.cache.resources("Node"):
            state = self._catalog.node_liveness(node.name).state
            if self._liveness.get(node.name) is not state:
                self._liveness[node.name] = state
                self._touched.add(node.name)

    def _notice_explanations(self) -> None:
        now = self._explained()
        for key in now.keys() | self._explanations.keys():
            if now.get(key) != self._explanations.get(key):
                self._mark("Workload", key)
                self._mark_replicas_of(key)
        self._explanations = now

    def said(self, workloads: Iterable[Key], nodes: Iterable[str]) -> None:
        """The leader, on another member, wants another number of them, or remarks on nodes."""
        if not self.watchers:
            return
        for key in workloads:
            self._mark("Workload", key)
            self._mark_replicas_of(key)
        for node in nodes:
            self._mark("Node", ("", node))

    def _on_touch(self, node: str) -> None:
        self._touched.add(node)

    def _on_changes(self, changes: list[Change]) -> None:
        if not self.watchers:
            return
        for change in changes:
            if change.key.startswith(keys.SPECS):
                self._mark_spec(change)
            elif change.key.startswith(keys.PLACEMENTS):
                for placement in (change.previous, change.value):
                    if isinstance(placement, NodePlacement):
                        self._mark_placement(placement)
            elif change.key.startswith(keys.IDENTITIES):
                kind, _, name = change.key.removeprefix(keys.IDENTITIES).partition("/")
                self._mark("Node" if kind == "node" else "Operator", ("", name))
            elif change.key.startswith((keys.JOBS, keys.ROLLOUTS)):
                workload = self._catalog.index.name_of(change.key.rpartition("/")[2])
                if workload is not None:
                    self._mark("Workload", workload)
            elif change.key.startswith(keys.OVERRIDES):
                self._mark_override(change.key)
            elif change.key.startswith(keys.NODE_STATUS):
                self._mark("Node", ("", change.key.removeprefix(keys.NODE_STATUS)))

    def _mark_override(self, key: str) -> None:
        """Of a replica and its workload, or of a whole site: then of all that runs there."""
        site, uid, replica, _ = key.removeprefix(keys.OVERRIDES).split("/")
        workload = self._catalog.index.name_of(uid)
        if workload is not None:
            self._mark("Workload", workload)
            self._mark("Replica", (workload[0], replica))
            return
        self._mark("Site", ("", site))
        for node in self._catalog.index.nodes_at(site):
            self._mark_placement(self._catalog.cache.placement(node))

    def _mark(self, kind: str, key: Key) -> None:
        for watcher in self._watchers.get(kind, ()):
            watcher.mark(key)

    def _mark_spec(self, change: Change) -> None:
        for record in (change.value, change.previous):
            if not isinstance(record, StoredResource):
                continue
            self._mark(record.kind, (record.namespace, record.name))
            if record.kind == "Workload":
                self._mark_replicas_of((record.namespace, record.name), record)
            elif record.kind == "Node":
                self._mark("Site", ("", str(record.spec.get("site"))))

    def _mark_replicas_of(self, key: Key, record: StoredResource | None = None) -> None:
        if not self._watchers.get("Replica"):
            return
        workload = record or self._catalog.cache.resource("Workload", *key)
        if workload is not None:
            for name in self._catalog.replica_names(workload):
                self._mark("Replica", (key[0], name))

    def _mark_placement(self, placement: NodePlacement) -> None:
        self._mark("Node", ("", placement.node))
        items: list[AssignmentRecord | StopRecord] = [*placement.assignments, *placement.stops]
        for item in items:
            self._mark("Workload", (item.namespace, item.workload))
            self._mark("Replica", (item.namespace, item.replica))

    def _mark_roles(self, node: str) -> None:
        """Replicas of others whose status says whether this node could take them over."""
        seen = self._catalog.fleet.get(node)
        for workload_uid, replica in seen.standbys if seen is not None else ():
            workload = self._catalog.index.name_of(workload_uid)
            if workload is not None:
                self._mark("Workload", workload)
                self._mark("Replica", (workload[0], replica))

    def _mark_node(self, node: str) -> None:
        """Something that its agent says, or that it says nothing, changed."""
        self._mark_placement(self._catalog.cache.placement(node))
        self._mark_roles(node)
        record = self._catalog.cache.resource("Node", "", node)
        if record is not None:
            self._mark("Site", ("", str(record.spec.get("site"))))


def _fingerprint(shown: Shown) -> int:
    """Of everything whose change is news. Within this process only."""
    record = shown.record
    status = dump(without_age(shown.status)) if shown.status is not None else b""
    if record.store_revision:
        return hash((record.store_revision, status))
    return hash((dump(record.spec), dump(record.labels), record.uid, status))
