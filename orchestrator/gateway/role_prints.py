"""A digest of what a plan says of its node's site, without composing that.

`RoleBook` asks for each node about which something changed: after a large deployment that is nearly
all of them, in the loop that serves sessions. So it costs some microseconds for each role. What it
covers is what `compose.compose_roles` writes; Secrets and Configs by their versions.
"""

from hashlib import sha256

from orchestrator.cache import Cache
from orchestrator.domain.roles import Neighbourhood, Role, SitePeer
from orchestrator.gateway.compose import CannotCompose, FactOf
from orchestrator.gateway.signed_facts import SignedFacts
from orchestrator.records import AssignmentRecord, GroupRecord
from orchestrator.scheduling.secrets import fact_names, secret_names
from polder.manifest import InvalidManifest, PodTemplate
from polder.overrides import to_message

_REMEMBERED_MAX = 50_000
_Carried = tuple[str, tuple[str, ...]]
"""Of what a role names beside its template; and the facts that it names, which differ by node."""


class RolePrints:
    """`forget` when a resource changed: until then what templates name is looked up once."""

    def __init__(self, cache: Cache, facts: SignedFacts) -> None:
        self._cache = cache
        self._facts = facts
        self._known: dict[tuple[str, int, str], _Carried] = {}

    def forget(self) -> None:
        self._known.clear()

    def of(self, found: Neighbourhood, node: str, site: str) -> str:
        """Hex; empty for nobody."""
        if found.is_empty:
            return ""
        parts = [_peer(peer) for peer in found.roster]
        parts += [
            to_message(override.decision).SerializeToString().hex() for override in found.overrides
        ]
        fact_of: FactOf | None = None
        for role in found.roles:
            parts.append(_role(role))
            if role.witness:
                continue
            carried, facts = self._carried(role.assignment, site)
            parts.append(carried)
            if facts:
                fact_of = fact_of or self._facts.of_node(node, site)
                parts.append(repr([fact_of(name) for name in facts]))
        return sha256("\n".join(parts).encode()).hexdigest()[:32]

    def _carried(self, item: AssignmentRecord, site: str) -> _Carried:
        key = (item.workload_uid, item.revision, site)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED_MAX:
                self._known.clear()
            found = self._known[key] = self._look_up(item, site)
        return found

    def _look_up(self, item: AssignmentRecord, site: str) -> _Carried:
        """What cannot be read has a print, too: it changes when it is mended."""
        revision = self._cache.revision_of(item.workload_uid, item.revision)
        try:
            template: PodTemplate | None = revision.decoded if revision is not None else None
            demands = self._facts.demands_at(site)(item)
        except (InvalidManifest, CannotCompose) as error:
            return repr(error), ()
        if template is None:
            return "no template", ()
        named = {
            "Secret": secret_names(template),
            "Config": template.named_configs(),
        }
        versions = [
            self._version(kind, item.namespace, name) for kind, names in named.items()
            for name in names
        ]  # fmt: skip
        return repr((versions, demands)), fact_names(template)

    def _version(self, kind: str, namespace: str, name: str) -> str:
        found = self._cache.resource(kind, namespace, name)
        if found is None or found.deletion_requested_at_ms:
            return f"{kind} {name}"
        return f"{kind} {name} {found.uid} {found.generation}"


def _peer(peer: SitePeer) -> str:
    return f"{peer.node} {peer.endpoints} {peer.certificate.hex()}"


def _role(role: Role) -> str:
    item = role.assignment
    return (
        f"{role.primary} {role.witness} {item.namespace} {item.workload} {item.workload_uid} "
        f"{item.replica} {item.replica_uid} {item.epoch} {item.revision} {item.standbys} "
        f"{item.replaces} {item.once} {_group(item.group)}"
    )


def _group(group: GroupRecord | None) -> str:
    if group is None:
        return ""
    former = [(item.number, item.voters) for item in group.before] if group.before else ""
    return (
        f"{group.number} {group.members} {group.witnesses} {group.exclusive} {group.on_return} "
        f"{group.stop_after_s} {group.forced} {former}"
    )
