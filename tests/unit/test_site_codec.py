"""What peers say survives the wire, and what no sound peer says is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.roster import Electorate
from agent.domain.site.messages import (
    Ability,
    Beat,
    Claim,
    Claims,
    Goodbye,
    LeaseAnswer,
    LeaseRequest,
    Open,
    Prepare,
    Propose,
    Release,
    Said,
    Seal,
)
from agent.site.codec import TOGETHER_MAX, BadMessage, decode, encode
from polder.v1 import site_pb2

names = st.text(min_size=1, max_size=20)
keys = st.tuples(names, names)
nodes = st.lists(names, max_size=4).map(tuple)
epochs = st.integers(0, 2**63 - 1)
groups = st.lists(st.builds(Electorate, epochs, nodes), max_size=3).map(tuple)
seconds = st.integers(0, 10**9).map(lambda ms: ms / 1000)
steps = st.one_of(
    st.builds(Prepare),
    st.builds(Propose, seconds, st.booleans()),
    st.builds(Release),
    st.builds(Seal, epochs, nodes, groups),
    st.builds(Open, nodes, epochs, seconds, names, groups),
)
claims = st.builds(Claim, keys, names, epochs, st.booleans(), seconds, nodes)
said = st.one_of(
    st.builds(Beat, nodes, seconds, epochs),
    st.builds(
        Claims,
        st.lists(claims, max_size=3).map(tuple),
        st.lists(st.builds(Ability, keys, st.booleans(), names), max_size=3).map(tuple),
    ),
    st.builds(LeaseRequest, epochs, keys, epochs, epochs, steps),
    st.builds(
        LeaseAnswer, epochs, keys, epochs, st.booleans(), names, epochs, epochs, names, seconds,
        epochs, nodes, groups,
    ),
    st.builds(Goodbye, names, seconds),
)  # fmt: skip


@given(said)
def test_what_is_said_arrives(message: Said) -> None:
    wire = encode(message).SerializeToString()
    assert decode(site_pb2.PeerMessage.FromString(wire)) == [message]


def test_of_what_is_left_of_a_lease_never_less_is_said() -> None:
    answer = LeaseAnswer(1, ("w", "r"), 1, False, remaining_s=1.0001)
    assert encode(answer).lease_answers[0].remaining_ms == 1001


def test_a_message_of_a_newer_agent_is_passed_over() -> None:
    assert decode(site_pb2.PeerMessage()) == []


@pytest.mark.parametrize(
    "message",
    [
        site_pb2.PeerMessage(beat=site_pb2.Beat(isolated_ms=-1)),
        site_pb2.PeerMessage(beat=site_pb2.Beat(silent=["x"] * 2000)),
        site_pb2.PeerMessage(beat=site_pb2.Beat(silent=["x" * 1000])),
        site_pb2.PeerMessage(lease_requests=[site_pb2.LeaseRequest(id=1)]),
        site_pb2.PeerMessage(
            lease_requests=[site_pb2.LeaseRequest(ballot=-1, prepare=site_pb2.LeasePrepare())]
        ),
        site_pb2.PeerMessage(claims=site_pb2.Claims(claims=[site_pb2.Claim(epoch=-5)])),
        site_pb2.PeerMessage(claims=site_pb2.Claims(claims=[site_pb2.Claim()] * 6000)),
        site_pb2.PeerMessage(lease_answers=[site_pb2.LeaseAnswer()] * (TOGETHER_MAX + 1)),
        site_pb2.PeerMessage(lease_answers=[site_pb2.LeaseAnswer(remaining_ms=-1)]),
    ],
)
def test_nonsense_is_refused(message: site_pb2.PeerMessage) -> None:
    with pytest.raises(BadMessage):
        decode(message)
