"""Where peers are told that they reach a node, and what waits to be told of its roles."""

import pytest

from agent.outbox import Outbox
from agent.site.network import endpoints
from polder.v1 import agent_pb2


@pytest.mark.parametrize(
    ("listen", "advertise", "addresses", "found"),
    [
        ("[::]:7445", (), ("10.0.0.1", "2001:db8::1"), ("10.0.0.1:7445", "[2001:db8::1]:7445")),
        ("[::]:7445", ("box.example",), ("10.0.0.1",), ("box.example:7445",)),
        ("[::]:7445", ("box:1", "[::1]:2", "[::1]"), (), ("box:1", "[::1]:2", "[::1]:7445")),
        ("", ("box",), ("10.0.0.1",), ()),
    ],
)
def test_endpoints(
    listen: str, advertise: tuple[str, ...], addresses: tuple[str, ...], found: tuple[str, ...]
) -> None:
    assert endpoints(listen, advertise, addresses) == found


def test_of_roles_the_last_list_goes_up_whole_and_once() -> None:
    outbox = Outbox()
    outbox.put_standbys(
        [agent_pb2.StandbyStatus(replica="a"), agent_pb2.StandbyStatus(replica="b")]
    )
    outbox.put_standbys([agent_pb2.StandbyStatus(replica="b", able=True)])
    assert outbox
    request = outbox.take()
    assert request is not None
    assert [(s.replica, s.able) for s in request.replica_status.standbys] == [("b", True)]
    assert not outbox and outbox.take() is None
