"""Between what peers send, `proto/polder/v1/site.proto`, and the words of the state machine.

Called by `links.py` for every message of a stream. A peer is known and may still be broken or lie:
what it says is bounded here, before anything of it is kept.
"""

from collections.abc import Iterable, Sequence
from math import ceil

from agent.domain.roster import Electorate, Key
from agent.domain.site.messages import (
    Ability,
    Beat,
    Claim,
    Claims,
    Goodbye,
    LeaseAnswer,
    LeaseRequest,
    Open,
    Overrides,
    Prepare,
    Propose,
    Release,
    Said,
    Seal,
)
from polder.overrides import FIELDS, OVERRIDES_MAX, BadOverride, from_message, to_message
from polder.v1 import plan_pb2, site_pb2

TEXT_MAX = 300
NODES_MAX = 1_000
GROUPS_MAX = 100  # of one replica that are not sealed yet
REPLICAS_MAX = 5_000  # as many as a plan may name
_STEPS = {Prepare: "prepare", Propose: "propose", Release: "release", Seal: "seal", Open: "open"}


LeaseWord = LeaseRequest | LeaseAnswer
TOGETHER_MAX = 500  # of them in one message


class BadMessage(Exception):
    """A peer sent what no sound agent sends."""


def encode(said: Said) -> site_pb2.PeerMessage:
    """The message for the wire."""
    match said:
        case Beat():
            return site_pb2.PeerMessage(
                beat=site_pb2.Beat(
                    silent=said.silent,
                    isolated_ms=_ms(said.isolated_s),
                    plan_generation=said.plan_generation,
                )
            )
        case Claims():
            return site_pb2.PeerMessage(
                claims=site_pb2.Claims(
                    claims=[_claim_out(claim) for claim in said.claims],
                    abilities=[_ability_out(ability) for ability in said.abilities],
                )
            )
        case LeaseRequest():
            return site_pb2.PeerMessage(lease_request=_request_out(said))
        case LeaseAnswer():
            return site_pb2.PeerMessage(lease_answer=_answer_out(said))
        case Goodbye():
            return site_pb2.PeerMessage(
                goodbye=site_pb2.PeerGoodbye(reason=said.reason, patience_ms=_ms(said.patience_s))
            )
        case Overrides(overrides):
            known = site_pb2.Overrides(overrides=[to_message(one) for one in overrides])
            return site_pb2.PeerMessage(overrides=known)


def encode_together(words: Iterable[LeaseWord]) -> site_pb2.PeerMessage:
    """One message for several, whose order among each other is nothing to anybody."""
    together = site_pb2.LeaseWords()
    for word in words:
        if isinstance(word, LeaseRequest):
            together.requests.append(_request_out(word))
        else:
            together.answers.append(_answer_out(word))
    return site_pb2.PeerMessage(lease_words=together)


def decode_all(message: site_pb2.PeerMessage) -> list[Said]:
    """Everything that a message says. Raises BadMessage."""
    if message.HasField("lease_words"):
        together = message.lease_words
        if len(together.requests) + len(together.answers) > TOGETHER_MAX:
            raise BadMessage(f"says {TOGETHER_MAX} words and more of leases at once")
        requests = [_request_in(request) for request in together.requests]
        return [*requests, *(_answer_in(answer) for answer in together.answers)]
    word = decode(message)
    return [word] if word is not None else []


def decode(message: site_pb2.PeerMessage) -> Said | None:
    """None for a kind that a newer agent may send. Raises BadMessage."""
    match message.WhichOneof("message"):
        case "beat":
            beat = message.beat
            return Beat(_nodes(beat.silent), _s(beat.isolated_ms), beat.plan_generation)
        case "claims":
            claims = message.claims
            if max(len(claims.claims), len(claims.abilities)) > REPLICAS_MAX:
                raise BadMessage(f"claims {len(claims.claims)} replicas")
            return Claims(
                tuple(_claim_in(claim) for claim in claims.claims),
                tuple(_ability_in(ability) for ability in claims.abilities),
            )
        case "lease_request":
            return _request_in(message.lease_request)
        case "lease_answer":
            return _answer_in(message.lease_answer)
        case "goodbye":
            goodbye = message.goodbye
            return Goodbye(_text(goodbye.reason), _s(goodbye.patience_ms))
        case "overrides":
            return _overrides_in(message.overrides)
        case _:
            return None


def _overrides_in(message: site_pb2.Overrides) -> Overrides:
    if len(message.overrides) > 2 * OVERRIDES_MAX:  # with as many tombstones
        raise BadMessage(f"{len(message.overrides)} overrides")
    try:
        found = [from_message(one) for one in message.overrides if one.field in FIELDS]
    except BadOverride as bad:
        raise BadMessage(f"an override: {bad}") from bad
    return Overrides(tuple(found))


# ---- claims ----


def _claim_out(claim: Claim) -> site_pb2.Claim:
    workload_uid, replica = claim.key
    return site_pb2.Claim(
        workload_uid=workload_uid,
        replica=replica,
        replica_uid=claim.uid,
        epoch=claim.epoch,
        ready=claim.ready,
        ready_for_ms=_ms(claim.ready_for_s),
        granted_by=claim.granted_by,
    )


def _claim_in(message: site_pb2.Claim) -> Claim:
    return Claim(
        key=_key(message),
        uid=_text(message.replica_uid),
        epoch=_epoch(message.epoch),
        ready=message.ready,
        ready_for_s=_s(message.ready_for_ms),
        granted_by=_nodes(message.granted_by),
    )


def _ability_out(ability: Ability) -> site_pb2.Ability:
    workload_uid, replica = ability.key
    return site_pb2.Ability(
        workload_uid=workload_uid, replica=replica, able=ability.able, reason=ability.reason
    )


def _ability_in(message: site_pb2.Ability) -> Ability:
    return Ability(_key(message), message.able, _text(message.reason))


# ---- leases ----


def _request_out(request: LeaseRequest) -> site_pb2.LeaseRequest:
    workload_uid, replica = request.key
    message = site_pb2.LeaseRequest(
        id=request.id,
        workload_uid=workload_uid,
        replica=replica,
        group=request.group,
        ballot=request.ballot,
    )
    match request.step:
        case Propose(length_s, bounded):
            message.propose.length_ms = _ms(length_s)
            message.propose.bounded = bounded
        case Seal(following, voters, before):
            message.seal.next = following
            message.seal.voters.extend(voters)
            message.seal.before.extend(_electorates_out(before))
        case Open(voters, floor, wait_s, holder, before):
            message.open.voters.extend(voters)
            message.open.floor = floor
            message.open.wait_ms = _ms(wait_s)
            message.open.holder = holder
            message.open.before.extend(_electorates_out(before))
    getattr(message, _STEPS[type(request.step)]).SetInParent()
    return message


def _request_in(message: site_pb2.LeaseRequest) -> LeaseRequest:
    step: Prepare | Propose | Release | Seal | Open
    match message.WhichOneof("step"):
        case "prepare":
            step = Prepare()
        case "propose":
            step = Propose(_s(message.propose.length_ms), message.propose.bounded)
        case "release":
            step = Release()
        case "seal":
            seal = message.seal
            step = Seal(seal.next, _nodes(seal.voters), _electorates_in(seal.before))
        case "open":
            opened = message.open
            step = Open(
                voters=_nodes(opened.voters),
                floor=_epoch(opened.floor),
                wait_s=_s(opened.wait_ms),
                holder=_text(opened.holder),
                before=_electorates_in(opened.before),
            )
        case other:
            raise BadMessage(f"asks for a lease with {other}")
    return LeaseRequest(message.id, _key(message), message.group, _epoch(message.ballot), step)


def _answer_out(answer: LeaseAnswer) -> site_pb2.LeaseAnswer:
    workload_uid, replica = answer.key
    return site_pb2.LeaseAnswer(
        id=answer.id,
        workload_uid=workload_uid,
        replica=replica,
        group=answer.group,
        granted=answer.granted,
        reason=answer.reason,
        promised=answer.promised,
        accepted=answer.accepted,
        holder=answer.holder,
        remaining_ms=_ms(answer.remaining_s),
        next=answer.next,
        next_voters=answer.next_voters,
        next_before=_electorates_out(answer.next_before),
    )


def _answer_in(message: site_pb2.LeaseAnswer) -> LeaseAnswer:
    return LeaseAnswer(
        id=message.id,
        key=_key(message),
        group=message.group,
        granted=message.granted,
        reason=_text(message.reason),
        promised=_epoch(message.promised),
        accepted=_epoch(message.accepted),
        holder=_text(message.holder),
        remaining_s=_s(message.remaining_ms),
        next=message.next,
        next_voters=_nodes(message.next_voters),
        next_before=_electorates_in(message.next_before),
    )


# ---- values ----


def _ms(seconds: float) -> int:
    """Rounded up: of what is left of a lease never less is said than there is."""
    return ceil(round(seconds * 1000, 3))


def _s(ms: int) -> float:
    if ms < 0:
        raise BadMessage(f"a duration of {ms} ms")
    return ms / 1000


def _epoch(number: int) -> int:
    if number < 0:
        raise BadMessage(f"epoch {number}")
    return number


def _text(text: str) -> str:
    if len(text) > TEXT_MAX:
        raise BadMessage(f"a text of {len(text)} characters")
    return text


def _key(
    message: site_pb2.Claim | site_pb2.Ability | site_pb2.LeaseRequest | site_pb2.LeaseAnswer,
) -> Key:
    return (_text(message.workload_uid), _text(message.replica))


def _nodes(names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(_text(name) for name in names)
    if len(found) > NODES_MAX:
        raise BadMessage(f"names {len(found)} nodes")
    return found


def _electorates_out(groups: Iterable[Electorate]) -> list[plan_pb2.Electorate]:
    return [plan_pb2.Electorate(number=group.number, voters=group.voters) for group in groups]


def _electorates_in(messages: Sequence[plan_pb2.Electorate]) -> tuple[Electorate, ...]:
    if len(messages) > GROUPS_MAX:
        raise BadMessage(f"names {len(messages)} groups")
    return tuple(Electorate(message.number, _nodes(message.voters)) for message in messages)
