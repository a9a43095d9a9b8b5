"""How a box becomes a node and stays one: join, renewal, revocation.

`join` serves the join port; the gateway calls `renew` and `confirm_serial` for open sessions. The
Store's identity record lists the serials that count, so a certificate is worth nothing once it is
not listed, whoever signed it.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import grpc
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator import settling
from orchestrator.cache import Cache
from orchestrator.catching_up import catch_up
from orchestrator.events import EventRecorder
from orchestrator.identity.authority import Authority, Issued, LeafRequest
from orchestrator.identity.joined_before import STEP, from_mark, to_mark
from orchestrator.identity.requests import public_key_of
from orchestrator.records import IdentityRecord, StoredResource, TokenRecord
from orchestrator.refusals import Refused, exhausted, unavailable
from orchestrator.settling import SettlingStore
from orchestrator.store import keys
from orchestrator.store.port import Compare, Delete, Entry, Op, Put, Store, StoreError
from orchestrator.whereabouts import Whereabouts
from polder.epochs import decided_at
from polder.identity import NodeId
from polder.manifest.names import HOST_NAME, HOST_NAME_HELP
from polder.tokens import secret_digest
from polder.v1 import agent_pb2, common_pb2

log = logging.getLogger(__name__)

NODE_LIFE_S = 12 * 86_400.0
SERIALS_MAX = 4
_ATTEMPTS = 16
_SECRET_MAX = 256


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """`endpoints`: this member's mTLS addresses, host:port; told while no member has a record."""

    endpoints: tuple[str, ...]
    member: str
    node_life_s: float = NODE_LIFE_S
    concurrent_max: int = 8
    waiting_max: int = 2_000


class NodeIdentities:
    """Issues node certificates and keeps their allow-list."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        authority: Authority,
        events: EventRecorder,
        clock: Callable[[], float],
        settings: JoinSettings,
    ) -> None:
        self._store = store
        self._writes = SettlingStore(store)
        self._cache = cache
        self._authority = authority
        self._events = events
        self._clock = clock
        self._settings = settings
        self._whereabouts = Whereabouts(cache, settings.endpoints)
        self._gate = asyncio.Semaphore(settings.concurrent_max)
        self._waiting = 0

    async def join(self, request: agent_pb2.JoinRequest) -> agent_pb2.JoinResponse:
        """Trades a token for an identity, exactly once.

        Raises Refused: TokenUnknown, TokenExpired, WrongSite, NameTaken, MachineIdTaken,
        SiteMissing, BadName, BadCsr, Overloaded. Raises StoreError.
        """
        if self._waiting >= self._settings.waiting_max:
            raise exhausted("Overloaded", "too many nodes are joining", "try again in a minute")
        self._waiting += 1
        try:
            async with self._gate:
                return await self._join(request)
        finally:
            self._waiting -= 1

    async def _join(self, request: agent_pb2.JoinRequest) -> agent_pb2.JoinResponse:
        for _ in range(_ATTEMPTS):
            try:
                token_entry, token = await self._token(request.token_secret)
            except Refused:
                again = await self._join_again(request)
                if again is None:
                    raise
                return again
            node = self._node_name(request, token)
            site = self._site(token)
            key = public_key_of(request.csr)
            known = await self._store.get(keys.identity("node", node))
            spec_entry = await self._store.get(keys.spec("Node", "", node))
            self._check_free(node, token, known, spec_entry)
            machine, machine_key = request.machine_id[:128], ""
            if machine:
                machine_key = keys.machine(secret_digest(machine))
                machine_entry = await self._store.get(machine_key)
                await catch_up(self._cache, machine_entry.mod_revision if machine_entry else 0)
                self._check_machine(node, machine)
            identity = NodeId(self._authority.trust_domain, token.site, node)
            issued = self._issue(identity, key)
            record = self._new_record(identity, issued, request)
            ops: list[Op] = [
                Delete(token_entry.key),
                Put(keys.identity("node", node), record.to_bytes()),
            ]
            if spec_entry is None:
                ops.append(Put(keys.spec("Node", "", node), self._new_node(node, token).to_bytes()))
            compares = [
                Compare.unchanged(token_entry),
                _as_read(keys.identity("node", node), known),
                _as_read(keys.spec("Node", "", node), spec_entry),
                Compare.unchanged(site),
            ]
            if machine:
                compares.append(_as_read(machine_key, machine_entry))
                ops.append(Put(machine_key, node.encode()))
            # An answer of the Store's that gets lost must not cost the box its only token.
            with settling.request(secret_digest(request.token_secret), repeated=False):
                made = to_mark(identity, issued, key)
                result, mark = await self._writes.step(STEP, compares, ops, made)
            if mark is not None and mark.value != made:
                continue  # the box asked another member, too, who was faster
            # The Site may have changed; and the event of the join is of the record that it made.
            await catch_up(self._cache, result.revision)
            if result.committed:
                self._report_join(identity, request, token, anew=spec_entry is None)
                return self._response(identity, issued)
        raise unavailable("Contention", "the join kept colliding with other changes", "try again")

    async def _join_again(self, request: agent_pb2.JoinRequest) -> agent_pb2.JoinResponse | None:
        """For the box that this token made a node, if it holds the same key. None: it is not."""
        if not 0 < len(request.token_secret) <= _SECRET_MAX:
            return None
        mark = await self._store.get(keys.request(secret_digest(request.token_secret), STEP))
        if mark is None:
            return None  # and no cryptography for whoever knocks
        key = public_key_of(request.csr)
        before = from_mark(mark, key)
        if before is None or request.node not in ("", before.node):
            return None
        identity = NodeId(self._authority.trust_domain, before.site, before.node)
        issued = self._issue(identity, key)

        def add(record: IdentityRecord) -> IdentityRecord:
            return replace(record, serials=_with_serial(record.serials, before.serial, issued))

        await self._change(identity, before.serial, add)
        log.info("answered a join again", extra={"node": before.node})
        return self._response(identity, issued)

    async def _token(self, secret: str) -> tuple[Entry, TokenRecord]:
        """The lookup is by the secret's hash: its timing tells nothing of other secrets."""
        entry = None
        if 0 < len(secret) <= _SECRET_MAX:
            entry = await self._store.get(keys.token(secret_digest(secret)))
        if entry is None:
            raise _refused(
                "TokenUnknown",
                "the join token was used already, has expired, or was not issued here",
                "make a new one: edgectl token create --site SITE",
            )
        token = TokenRecord.from_bytes(entry.value)
        if token.expires_at_ms <= self._clock() * 1000:
            raise _refused(
                "TokenExpired",
                "the join token has expired",
                f"make a new one: edgectl token create --site {token.site}",
            )
        return entry, token

    def _node_name(self, request: agent_pb2.JoinRequest, token: TokenRecord) -> str:
        name = request.node or token.node
        if token.node and name != token.node:
            raise _refused(
                "WrongNode",
                f"the join token is for the node {token.node!r}, not {name!r}",
                f"join as {token.node}, or make a token for {name}",
            )
        if HOST_NAME.fullmatch(name) is None:
            raise _refused("BadName", f"{name[:80]!r} is not {HOST_NAME_HELP}", "give --node NAME")
        return name

    def _site(self, token: TokenRecord) -> Entry:
        """The Site that the token names; what must still be so when the join commits."""
        site = self._cache.resource("Site", "", token.site)
        if site is None or site.deletion_requested_at_ms:
            raise _refused(
                "SiteMissing",
                f"the site {token.site!r} of the join token does not exist any more",
                "apply the Site, then make a new token",
            )
        key = keys.spec("Site", "", token.site)
        return Entry(key, b"", 0, site.store_revision, 0)

    def _check_free(
        self, node: str, token: TokenRecord, known: Entry | None, spec: Entry | None
    ) -> None:
        """A name is free when nobody can speak for it: never used, revoked, or all expired."""
        if spec is not None:
            stored = StoredResource.from_bytes(spec.value, spec.mod_revision)
            if stored.deletion_requested_at_ms:
                raise _refused(
                    "NameTaken", f"the node {node} is being deleted", "try again when it is gone"
                )
            site = stored.spec.get("site")
            if site != token.site:
                raise _refused(
                    "WrongSite",
                    f"the node {node} belongs to the site {site!r}, and the token is for "
                    f"{token.site!r}",
                    f"make a token for {site}, choose another name, or delete node/{node} first",
                )
        if known is not None:
            record = IdentityRecord.from_bytes(known.value, known.mod_revision)
            alive = any(expiry > self._clock() * 1000 for expiry in record.serials.values())
            if alive and not record.revoked_at_ms:
                raise _refused(
                    "NameTaken",
                    f"the name {node} belongs to a node with a valid certificate",
                    f"choose another name, or edgectl revoke node/{node} first",
                )

    def _check_machine(self, node: str, machine: str) -> None:
        """Two boxes with copies of one disk would be taken for one wherever a machine is told by
        its id, and most likely share more than that. Raises Refused.

        The mirror knows everybody who joined up to the last one with this id.
        """
        now_ms = self._clock() * 1000
        twins = sorted(
            other.name
            for other in self._cache.identities("node")
            if machine and other.machine_id == machine and other.name != node
            if not other.revoked_at_ms and any(end > now_ms for end in other.serials.values())
        )
        if twins:
            raise _refused(
                "MachineIdTaken",
                f"this box has the machine id of {', '.join(twins[:5])}",
                "if its disk is a copy, give it an id of its own: rm -f /etc/machine-id "
                "/var/lib/dbus/machine-id && systemd-machine-id-setup, then join again. If it is "
                f"the same box under a new name: edgectl revoke node/{twins[0]}, then join again",
            )

    def _issue(self, identity: NodeId, key: ec.EllipticCurvePublicKey) -> Issued:
        life = self._settings.node_life_s
        return self._authority.issue(LeafRequest(identity, key, life), self._clock())

    def _new_record(
        self, identity: NodeId, issued: Issued, request: agent_pb2.JoinRequest
    ) -> IdentityRecord:
        return IdentityRecord(
            kind="node",
            name=identity.node,
            site=identity.site,
            serials={issued.serial: issued.expires_at_ms},
            machine_id=request.machine_id[:128],
            joined_at_ms=int(self._clock() * 1000),
            joined_epoch=decided_at(self._cache.epoch),
        )

    def _new_node(self, node: str, token: TokenRecord) -> StoredResource:
        return StoredResource(
            kind="Node",
            namespace="",
            name=node,
            uid=str(uuid.uuid4()),
            spec={"site": token.site},
            labels={"polder.eu/node": node[:63].rstrip("-."), "polder.eu/site": token.site},
            created_at_ms=int(self._clock() * 1000),
        )

    def _report_join(
        self,
        identity: NodeId,
        request: agent_pb2.JoinRequest,
        token: TokenRecord,
        *,
        anew: bool,
    ) -> None:
        """`anew`: it has a new record. Another node may have had the name before."""
        source = f"gateway/{self._settings.member}"
        again = not anew or bool(self._events.list(kind="Node", name=identity.node, limit=1))
        message = f"joined site {identity.site} with a token of {token.created_by}"
        if again and anew:
            message += "; it is a new node: what is older is of another one that had its name"
        elif again:
            message += "; the node stays the same, with a new certificate"
        self._events.record(
            "Node",
            "",
            identity.node,
            common_pb2.EVENT_TYPE_NORMAL,
            "JoinedAgain" if again else "Joined",
            message,
            source,
        )

    def _response(self, identity: NodeId, issued: Issued) -> agent_pb2.JoinResponse:
        return agent_pb2.JoinResponse(
            node=identity.node,
            site=identity.site,
            trust_domain=identity.trust_domain,
            certificate_chain=issued.chain_der,
            trust_bundle=self._authority.roots_der,
            endpoints=self._whereabouts.for_node(identity.node, identity.site),
        )

    # --- renewal -------------------------------------------------------------------------------

    async def renew(
        self, identity: NodeId, presented_serial: str, csr: bytes
    ) -> agent_pb2.RenewResponse:
        """A new certificate beside the one presented, which stays good until the new one is used.

        Raises Refused (Revoked, BadCsr) and StoreError.
        """
        key = public_key_of(csr)
        issued = self._issue(identity, key)

        def add(record: IdentityRecord) -> IdentityRecord:
            return replace(record, serials=_with_serial(record.serials, presented_serial, issued))

        await self._change(identity, presented_serial, add)
        return agent_pb2.RenewResponse(
            certificate_chain=issued.chain_der,
            trust_bundle=self._authority.roots_der,
            endpoints=self._whereabouts.for_node(identity.node, identity.site),
        )

    async def confirm_serial(self, identity: NodeId, serial: str) -> None:
        """The node connected with this serial: those issued before it are not needed any more.

        Costs nothing when there are none, and may wait while the Store is away. Raises Refused
        (Revoked) and StoreError.
        """
        record = self._cache.identity("node", identity.node)
        if record is not None and list(record.serials)[:1] == [serial]:
            return

        def drop_older(record: IdentityRecord) -> IdentityRecord:
            order = list(record.serials)
            kept = order[order.index(serial) :]
            return replace(record, serials={s: record.serials[s] for s in kept})

        try:
            await self._change(identity, serial, drop_older)
        except StoreError:
            if record is None or not record.accepts(serial):
                raise
            log.info("older certificates stay listed for now", extra={"node": identity.node})

    async def _change(
        self,
        identity: NodeId,
        serial: str,
        change: Callable[[IdentityRecord], IdentityRecord],
    ) -> None:
        key = keys.identity("node", identity.node)
        for _ in range(_ATTEMPTS):
            entry = await self._store.get(key)
            record = IdentityRecord.from_bytes(entry.value, entry.mod_revision) if entry else None
            if entry is None or record is None or not record.accepts(serial):
                raise Refused(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "Revoked",
                    f"the certificate of {identity} does not count any more",
                    "join again with a new token",
                )
            changed = change(record)
            if changed == record:
                return
            result = await self._store.txn(
                [Compare.unchanged(entry)], [Put(key, changed.to_bytes())]
            )
            if result.committed:
                return
        raise unavailable("Contention", "the identity kept changing", "try again")


def _with_serial(serials: dict[str, int], presented: str, issued: Issued) -> dict[str, int]:
    """In order of issue. An answer may have been lost: the latest few stay, and the one in use."""
    others = [serial for serial in serials if serial != presented]
    kept = [presented, *others[-(SERIALS_MAX - 2) :]]
    return {**{s: serials[s] for s in kept}, issued.serial: issued.expires_at_ms}


def _as_read(key: str, entry: Entry | None) -> Compare:
    return Compare.unchanged(entry) if entry is not None else Compare.absent(key)


def _refused(reason: str, message: str, hint: str) -> Refused:
    return Refused(grpc.StatusCode.PERMISSION_DENIED, reason, message, hint)
