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


TOGETHER_MAX = 500  # words of leases in one message


class BadMessage(Exception):
    """A peer sent what no sound agent sends."""


def goes_with(said: Said, before: Said) -> bool:
    """Whether it may follow in the same message: whoever reads it hears the words of leases first,
    in any order, and then the beat."""
    if not isinstance(before, LeaseRequest | LeaseAnswer):
        return False
    return isinstance(said, LeaseRequest | LeaseAnswer | Beat)


def encode(*words: Said) -> site_pb2.PeerMessage:
    """The message for the wire. Each word but the first `goes_with` the one before."""
    message = site_pb2.PeerMessage()
    for said in words:
        match said:
            case Beat():
                message.beat.silent.extend(said.silent)
                message.beat.isolated_ms = _ms(said.isolated_s)
                message.beat.plan_generation = said.plan_generation
            case Claims():
                message.claims.claims.extend(_claim_out(claim) for claim in said.claims)
                message.claims.abilities.extend(_ability_out(one) for one in said.abilities)
                message.claims.SetInParent()
            case LeaseRequest():
                message.lease_requests.append(_request_out(said))
            case LeaseAnswer():
                message.lease_answers.append(_answer_out(said))
            case Goodbye():
                message.goodbye.reason = said.reason
                message.goodbye.patience_ms = _ms(said.patience_s)
            case Overrides(overrides):
                message.overrides.overrides.extend(to_message(one) for one in overrides)
                message.overrides.SetInParent()
    return message


def decode(message: site_pb2.PeerMessage) -> list[Said]:
    """All that it says; nothing, if that is what only a newer agent knows. Raises BadMessage."""
    requests, answers = message.lease_requests, message.lease_answers
    if len(requests) + len(answers) > TOGETHER_MAX:
        raise BadMessage(f"says {TOGETHER_MAX} words and more of leases at once")
    words: list[Said] = [*map(_request_in, requests), *map(_answer_in, answers)]
    if message.HasField("claims"):
        words.append(_claims_in(message.claims))
    if message.HasField("overrides"):
        words.append(_overrides_in(message.overrides))
    if message.HasField("beat"):
        beat = message.beat
        words.append(Beat(_nodes(beat.silent), _s(beat.isolated_ms), beat.plan_generation))
    if message.HasField("goodbye"):
        goodbye = message.goodbye
        words.append(Goodbye(_text(goodbye.reason), _s(goodbye.patience_ms)))
    return words


def _claims_in(message: site_pb2.Claims) -> Claims:
    if max(len(message.claims), len(message.abilities)) > REPLICAS_MAX:
        raise BadMessage(f"claims {len(message.claims)} replicas")
    return Claims(
        tuple(_claim_in(claim) for claim in message.claims),
        tuple(_ability_in(ability) for ability in message.abilities),
    )


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
