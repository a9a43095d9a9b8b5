"""What an operator is told when an agent cannot give logs or run a command."""

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.api.relaying import Relaying
from orchestrator.authz import Caller
from orchestrator.refusals import Refused
from polder.v1 import agent_pb2, operator_pb2


class Relays:
    """Agents that have no pod of any replica."""

    @contextlib.asynccontextmanager
    async def open(self, node: str, asked: Any) -> AsyncIterator[AsyncIterator[Any]]:
        uid = asked.logs.replica_uid
        end = agent_pb2.RelayEnd(reason="ReplicaNotFound", message=f"replica {uid} has no pod")

        async def messages() -> AsyncIterator[Any]:
            yield agent_pb2.RelayRequest(end=end)

        yield messages()


async def test_a_replica_without_a_pod_is_called_by_its_name_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Agents know replicas by a uid that no operator has ever seen."""
    status = {"reason": "ConfigMissing", "message": "there is no config 'big'"}
    record = SimpleNamespace(spec={"node": "n1"}, uid="5f3a")
    catalog: Any = SimpleNamespace(get=lambda *_: SimpleNamespace(record=record, status=status))
    monkeypatch.setattr("orchestrator.api.relaying.require", lambda *_: None)
    relaying = Relaying(catalog, Relays(), None)  # type: ignore[arg-type]
    caller: Caller = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(Refused) as caught:
        async for _ in relaying.logs(caller, operator_pb2.LogsRequest(replica="web-0")):
            raise AssertionError("nothing is written")
    assert str(caught.value) == (
        "replica web-0 has no pod; ConfigMissing: there is no config 'big'"
    )
    assert "describe replica/web-0" in caught.value.hint
