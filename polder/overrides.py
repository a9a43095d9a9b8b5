"""What operators decide at a site itself: last-writer-wins registers, and the one rule of merging.

Used alike by agents (`agent/domain/site/overrides.py`), by orchestrators and for what plans say: so
that whichever way a decision came, through how many nodes and in which order, all end up with the
same. Pure; see ADR 27 and `Override` in `proto/polder/v1/plan.proto`.

    field       of          value     means
    stopped     a replica   "true"    it runs nowhere until that is taken back
    placedOn    a replica   a node    that node takes it over from whoever held it at `base_epoch`
    frozen      the site    "true"    nothing is taken over, moved or resolved there

An empty value takes a decision back. It stays as a tombstone for a while, since an older value may
come from a node that was away.

Who wrote it is signed: `signed_bytes`, with the key of the node, or of an orchestrator where there
is none (`override_proofs.py`).
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as part
from typing import Any

from polder.v1 import plan_pb2

STOPPED = "stopped"
PLACED_ON = "placedOn"
FROZEN = "frozen"
FIELDS = (STOPPED, PLACED_ON, FROZEN)
TRUE = "true"

OVERRIDES_MAX = 1_000  # of one site
SHARE_MAX = 400  # that were decided at one node of it: one that lies does not take all places
TOMBSTONE_S = 7 * 86_400.0
STAMP_MAX = 1 << 40  # of what a site decides: far above what operators can do
STAMP_FAR = STAMP_MAX // 2  # nobody comes so far but by a lie, which is not to carry others along
STAMP_LIMIT = (
    2 * STAMP_MAX
)  # the rest is the orchestrator's: whatever was said, it can take it back
REASON_MAX = 500
CONFLICT_MAX = 1_000
NAME_MAX = 253
CONTEXT = b"polder.v1.Override\0"  # keeps a signature from being valid for anything else
SIGNATURE_MAX, CHAIN_MAX, CERTIFICATE_MAX = 100, 4, 4_096
_LONGEST = {
    "id": 100,
    "workload_uid": NAME_MAX,
    "namespace": NAME_MAX,
    "replica": NAME_MAX,
    "value": NAME_MAX,
    "node": NAME_MAX,
    "by": NAME_MAX,
    "reason": REASON_MAX,
    "conflict": CONFLICT_MAX,
}

Subject = tuple[str, str]
"""(workload uid, replica name), as the agents' `Key`; the whole site is `SITE`."""
SITE: Subject = ("", "")
Register = tuple[str, str, str]
"""(workload uid, replica name, field): of each there is one value."""


class BadOverride(ValueError):
    """It says what no sound writer writes."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A signature, and the certificates of its key: leaf first, DER."""

    signature: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """One decision. As the message of the same name; `at_ms` is a wall clock's, for people. With
    another `proof` it is the same decision.

    Raises BadOverride for what cannot be meant. `stamp` 0: not written anywhere yet.
    """

    field: str
    value: str
    workload_uid: str = ""
    namespace: str = ""
    replica: str = ""
    id: str = ""
    stamp: int = 0
    node: str = ""
    by: str = ""
    reason: str = ""
    at_ms: int = 0
    base_revision: int = 0
    base_epoch: int = 0
    conflict: str = ""
    proof: Proof | None = part(default=None, compare=False)

    def __post_init__(self) -> None:
        if wrong := _wrong(self):
            raise BadOverride(wrong)

    @property
    def subject(self) -> Subject:
        return (self.workload_uid, self.replica)

    @property
    def register(self) -> Register:
        return (self.workload_uid, self.replica, self.field)

    @property
    def rank(self) -> tuple[int, str, str]:
        """Of two in one register the greater one counts. The id only decides where a node that
        lost its disk used a stamp again."""
        return (self.stamp, self.node, self.id)

    @property
    def stands(self) -> bool:
        """It was not taken back."""
        return self.value != ""


def _wrong(found: Override) -> str:
    """Why it must not be; empty: it may."""
    if found.field not in FIELDS:
        return f"{found.field[:40]!r} is none of {', '.join(FIELDS)}"
    for name, longest in _LONGEST.items():
        if len(getattr(found, name)) > longest:
            return f"its {name} has more than {longest} characters"
    if found.field == FROZEN:
        if found.subject != SITE or found.namespace:
            return f"{FROZEN} is of a whole site, and of no replica"
    elif not (found.workload_uid and found.replica):
        return f"{found.field} is of a replica, which it does not name"
    if found.field != PLACED_ON and found.value not in ("", TRUE):
        return f"{found.field} is {TRUE!r} or empty, not {found.value[:40]!r}"
    if not 0 <= found.stamp <= STAMP_LIMIT:
        return f"stamp {found.stamp} is out of range"
    if min(found.at_ms, found.base_revision, found.base_epoch) < 0:
        return "a number in it is negative"
    if found.proof is not None and not _is_small(found.proof):
        return "its proof is too large"
    return ""


def _is_small(proof: Proof) -> bool:
    lengths = [len(der) for der in proof.chain]
    return (
        len(proof.signature) <= SIGNATURE_MAX
        and len(lengths) <= CHAIN_MAX
        and max(lengths, default=0) <= CERTIFICATE_MAX
    )


def words(found: Override) -> str:
    """For people: `stopped by operator/ann at node-a: REASON`."""
    what = {STOPPED: "stopped", FROZEN: "frozen"}.get(found.field, f"placed on {found.value}")
    where = f" at {found.node}" if found.node else ""
    why = f": {found.reason}" if found.reason else ""
    return f"{what} by {found.by or 'somebody'}{where}{why}"


def newer(told: Iterable[Override], known: Mapping[Register, Override]) -> list[Override]:
    """Which of those change what is known, one for each register."""
    found: dict[Register, Override] = {}
    for override in told:
        best = found.get(override.register) or known.get(override.register)
        if best is None or override.rank > best.rank:
            found[override.register] = override
    return list(found.values())


def next_stamp(*known: Iterable[Override]) -> int:
    """One above all of these. Above STAMP_MAX only the orchestrator writes."""
    return 1 + max((override.stamp for some in known for override in some), default=0)


# ---- forms ----

_PLAIN = tuple(name for name in Override.__slots__ if name != "proof")
_Plain = dict[str, Any]


def signed_bytes(override: Override, site: str) -> bytes:
    """What its writer signs: all that it decided, and where. A conflict is said by others."""
    said = {name: found for name, found in _plain(override).items() if name != "conflict"}
    return CONTEXT + json.dumps({"at_site": site, **said}, sort_keys=True).encode()


def to_message(override: Override) -> plan_pb2.Override:
    message = plan_pb2.Override(**_plain(override))
    if override.proof is not None:
        message.proof.signature = override.proof.signature
        message.proof.certificate_chain.extend(override.proof.chain)
    return message


def from_message(message: plan_pb2.Override) -> Override:
    """Raises BadOverride."""
    proof = None
    if message.HasField("proof"):
        proof = Proof(message.proof.signature, tuple(message.proof.certificate_chain))
    return Override(**{name: getattr(message, name) for name in _PLAIN}, proof=proof)


def to_body(override: Override) -> dict[str, Any]:
    """For JSON; what is empty is left out."""
    body = _plain(override)
    if override.proof is not None:
        body["proof"] = [_text(part) for part in (override.proof.signature, *override.proof.chain)]
    return body


def from_body(body: Mapping[str, Any]) -> Override:
    """What `to_body` made. Raises BadOverride for anything else."""
    try:
        plain: _Plain = {"value": ""} | dict(body)
        parts = plain.pop("proof", None)
        if parts:
            signature, *chain = (base64.b64decode(part, validate=True) for part in parts)
            plain["proof"] = Proof(signature, tuple(chain))
        return Override(**plain)
    except BadOverride:
        raise
    except (TypeError, ValueError) as error:
        raise BadOverride(str(error)) from error


def _plain(override: Override) -> _Plain:
    return {name: found for name in _PLAIN if (found := getattr(override, name))}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
