"""edgectl with several endpoints: dead ones, silent ones, ones that fall silent, old answers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from edgectl.client import Client
from edgectl.config import Connection
from edgectl.errors import CallError
from edgectl.following import follow
from edgectl.watching import Watch
from polder.errors import detail
from polder.metadata import AGE_KEY, MEMBER_KEY, REPEATED_KEY, REQUEST_KEY
from polder.v1 import common_pb2, operator_pb2
from tests.integration.edgectl_server import SERVER_NAME, FakeInstallation, FakeOperatorApi

NODES = common_pb2.ResourceRef(kind="Node", name="n")


class Api(FakeOperatorApi):
    """Notes what came with each call, and answers as the test says."""

    def __init__(self, authority: Any) -> None:
        super().__init__(authority)
        self.metadata: list[tuple[str, dict[str, str]]] = []
        self.hangs: set[str] = set()
        self.open = threading.Event()
        self.trailing: tuple[tuple[str, str], ...] = ()
        self.away = False  # from its store
        self.away_s = 0.0  # for so long it looks for that first
        self.stops = False  # just when a call has reached it

    def _begin(self, name: str, request: Any, context: Any) -> None:
        self.metadata.append((name, dict(context.invocation_metadata())))
        super()._begin(name, request, context)
        if name in self.hangs:
            self.open.wait(20)
        if self.trailing:
            context.set_trailing_metadata(self.trailing)
        if self.stops and name == "Apply":
            context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        if self.away and name == "Apply":
            time.sleep(self.away_s)
            context.set_trailing_metadata(detail("StoreUnavailable", "try another member"))
            context.abort(grpc.StatusCode.UNAVAILABLE, "nothing was written")

    def _fail(self, context: Any, code: Any, text: str, metadata: Any = ()) -> None:
        super()._fail(context, code, text, (*metadata, *self.trailing))

    def said(self, name: str) -> list[dict[str, str]]:
        return [metadata for called, metadata in self.metadata if called == name]


class Several:
    """Fakes that share one CA, each an endpoint."""

    def __init__(self, count: int) -> None:
        self.first = FakeInstallation()
        self.apis: list[Api] = []
        self.endpoints: list[str] = []
        self._servers = [self.first.server]
        for _ in range(count):
            api = Api(self.first.authority)
            api.put("Node", "n", {}, {"ready": True})
            server, port = self.first._serve(api)
            self.apis.append(api)
            self._servers.append(server)
            self.endpoints.append(f"127.0.0.1:{port}")

    def client(self, *endpoints: str, timeout_s: float = 20.0) -> Client:
        certificate, key = self.first.authority.issue("spiffe://polder.test/operator/ada", [])
        connection = Connection(
            "test", (), self.first.authority.pem, certificate, key, server_name=SERVER_NAME
        )
        return Client(connection, endpoints or self.endpoints, timeout_s)

    def stop(self) -> None:
        for api in self.apis:
            api.open.set()
        for server in self._servers:
            server.stop(grace=None).wait(timeout=5)


@pytest.fixture
def several() -> Iterator[Several]:
    made = Several(2)
    yield made
    made.stop()


@pytest.fixture
def deaf() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def document() -> operator_pb2.Document:
    return operator_pb2.Document(
        json=b'{"apiVersion":"polder.eu/v1","kind":"Namespace","metadata":{"name":"ward"}}'
    )


def took_s(client: Client) -> float:
    begun = time.monotonic()
    client.get(NODES)
    return time.monotonic() - begun


def test_dead_and_deaf_endpoints_cost_a_moment(several: Several, deaf: str) -> None:
    client = several.client("127.0.0.1:1", deaf, deaf, several.endpoints[0])
    begun = time.monotonic()
    assert client.get(NODES).resource.metadata.name == "n"
    assert time.monotonic() - begun < 2.5
    assert min(took_s(client) for _ in range(5)) < 0.25, "the one that answered is used again"
    assert len(several.apis[0].said("Get")) == 6
    assert len(several.apis[0].said("WhoAmI")) == 1
    client.close()


def test_the_first_endpoint_is_preferred(several: Several) -> None:
    client = several.client()
    for _ in range(5):
        client.get(NODES)
    assert len(several.apis[0].said("Get")) == 5 and not several.apis[1].metadata
    client.close()


def test_all_dead(deaf: str, several: Several) -> None:
    client = several.client("127.0.0.1:1", "127.0.0.1:2")
    begun = time.monotonic()
    with pytest.raises(CallError, match="connection refused") as raised:
        client.get(NODES)
    assert time.monotonic() - begun < 3.0
    assert "2 endpoints were tried" in raised.value.hints
    client.close()


def test_one_that_falls_silent_is_left(several: Several) -> None:
    """As a paused process, or a region that vanishes: connected, and no answer to anything."""
    first, second = several.apis
    client = several.client()
    client.get(NODES)
    first.hangs = {"Apply", "WhoAmI"}
    begun = time.monotonic()
    assert client.apply([document()]).results
    assert time.monotonic() - begun < 8.0
    (tried,), (again,) = first.said("Apply"), second.said("Apply")
    assert tried[REQUEST_KEY] == again[REQUEST_KEY]
    assert REPEATED_KEY not in tried and again[REPEATED_KEY] == "1"
    client.close()


def test_one_that_is_only_slow_is_waited_for(several: Several) -> None:
    first, second = several.apis
    first.hangs = {"Apply"}
    client = several.client()
    threading.Timer(5.0, first.open.set).start()
    assert client.apply([document()]).results
    assert not second.said("Apply")
    assert len(first.said("WhoAmI")) >= 2, "it was asked whether it lives"
    client.close()


def test_a_member_without_its_store_sends_writers_on(several: Several) -> None:
    first, second = several.apis
    first.away = True
    client = several.client()
    assert client.apply([document()]).results
    assert second.said("Apply")[0][REPEATED_KEY] == "1"
    second.away = True
    begun = time.monotonic()
    with pytest.raises(CallError, match="nothing was written") as raised:
        client.apply([document()])
    assert 7.0 < time.monotonic() - begun < 10.0, "they live: they may find their store again"
    assert not raised.value.unknown
    client.close()


def test_without_any_store_a_writer_is_told_within_ten_seconds(several: Several) -> None:
    """The first waits for an election, the others know by then that it is away."""
    for api, away_s in zip(several.apis, (5.0, 1.0), strict=True):
        api.away, api.away_s = True, away_s
    client = several.client()

    def first_knows_too() -> None:
        several.apis[0].away_s = 1.0

    timer = threading.Timer(5.5, first_knows_too)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(CallError, match="nothing was written"):
        client.apply([document()])
    assert time.monotonic() - begun < 10.0
    assert several.apis[1].said("Apply"), "each of them was asked"
    client.close()


def test_a_watch_goes_on_where_the_store_can_be_read(several: Several) -> None:
    first, second = several.apis
    client = several.client()
    told: list[str] = []
    request = operator_pb2.WatchRequest(kind="Node")
    watch = Watch(client, request, on_break=lambda error: told.append(error.message)).changes()
    assert [next(watch).type for _ in range(2)] == ["ADDED", "SYNCED"]
    for _, stream in first.watchers:
        stream.put("break")  # as a member does that lost its store
    second.put("Node", "new", {}, {"ready": True})
    assert next(one.item for one in watch if one.item is not None and one.item.name == "new")
    (said,) = told
    assert said.endswith("stream broken") and second.said("Watch")
    client.close()


def test_what_may_not_be_sent_twice_is_not(several: Several) -> None:
    first, second = several.apis
    first.hangs = {"UndoRollout"}
    client = several.client(timeout_s=2.0)
    request = operator_pb2.UndoRolloutRequest(ref=NODES)
    with pytest.raises(CallError) as raised:
        client.undo_rollout(request)
    assert raised.value.unknown and any("may have been done" in h for h in raised.value.hints)
    assert not second.said("UndoRollout")
    client.close()


def test_old_answers_are_warned_of_once(
    several: Several, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = several.apis
    first.trailing = ((MEMBER_KEY, "eu-1"), (AGE_KEY, "42000"))
    client = several.client(several.endpoints[0])
    client.get(NODES)
    client.get(NODES)
    assert client.answered_by == ("eu-1", 42_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "warning: answers are 42 s old: member eu-1 cannot read its store\n"
    client.close()


def test_a_member_that_can_read_its_store_is_preferred(
    several: Several, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = several.apis
    first.trailing = ((MEMBER_KEY, "eu-1"), (AGE_KEY, "42000"))
    second.trailing = ((MEMBER_KEY, "eu-2"),)
    second.put("Node", "new", {}, {"ready": True})
    client = several.client()
    assert client.get(NODES).resource.metadata.name == "n"
    assert client.answered_by == ("eu-2", 0)
    assert client.get(common_pb2.ResourceRef(kind="Node", name="new")).resource
    assert len(first.said("Get")) == 1
    client.close()
    client = several.client()
    assert client.get(common_pb2.ResourceRef(kind="Node", name="new")).resource
    assert capsys.readouterr().err == ""
    second.trailing = ((MEMBER_KEY, "eu-2"), (AGE_KEY, "7000"))
    client.close()
    client = several.client()
    with pytest.raises(CallError, match="there is no Node"):
        client.get(common_pb2.ResourceRef(kind="Node", name="neither"))
    assert "answers are 42 s old: member eu-1" in capsys.readouterr().err
    client.close()


def test_with_one_endpoint_nothing_is_added(several: Several) -> None:
    first, _ = several.apis
    client = several.client(several.endpoints[0])
    client.apply([document()])
    assert REQUEST_KEY not in first.said("Apply")[0]
    client.close()


def test_a_member_that_stops_as_the_call_comes_is_no_error(several: Several) -> None:
    """Whether it did it is unknown: the next one is told that it is asked again."""
    several.apis[0].stops = True
    client = several.client()
    assert client.apply([document()]).results
    client.close()
    (first,), (second,) = (api.said("Apply") for api in several.apis)
    assert first[REQUEST_KEY] == second[REQUEST_KEY]
    assert REPEATED_KEY not in first and second[REPEATED_KEY] == "1"


# --- logs -f --------------------------------------------------------------------------------------


def _log(*lines: tuple[str, str]) -> list[bytes]:
    return [f"{moment} {text}\n".encode() for moment, text in lines]


_LINES = _log(
    ("2026-01-01T10:00:00.1Z", "one"),
    ("2026-01-01T10:00:00.100000001Z", "two"),
    ("2026-01-01T10:00:00.12Z", "same moment"),
    ("2026-01-01T10:00:00.12Z", "same moment"),
    ("2026-01-01T10:00:00.12Z", "third of it"),
    ("2026-01-01T10:00:01Z", "later"),
)


@pytest.mark.parametrize("cut", range(1, len(_LINES)))
@pytest.mark.parametrize("torn", [b"", b"2026-01-01T10:00:0"])
def test_following_logs_goes_on_without_a_gap_or_a_repetition(
    cut: int, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgectl.following.time.sleep", lambda _: None)
    asked: list[operator_pb2.LogsRequest] = []

    class Logs:
        def logs(self, request: operator_pb2.LogsRequest) -> Iterator[operator_pb2.LogsResponse]:
            asked.append(operator_pb2.LogsRequest.FromString(request.SerializeToString()))
            if len(asked) == 1:
                yield operator_pb2.LogsResponse(data=b"".join(_LINES[:cut]) + torn)
                raise CallError("gone", code="UNAVAILABLE")
            if len(asked) == 2:
                raise CallError(
                    "its box is not back yet", code="UNAVAILABLE", reason="NotConnected"
                )
            yield operator_pb2.LogsResponse(data=b"".join(_LINES))  # the box knows seconds only

    request = operator_pb2.LogsRequest(replica="r", options={"follow": True, "tail_lines": 5})
    breaks: list[str] = []
    shown = list(follow(Logs(), request, lambda e: breaks.append(e.message)))  # type: ignore[arg-type]
    assert b"".join(shown) == b"".join(line.partition(b" ")[2] for line in _LINES)
    assert breaks == ["gone"]
    assert [one.options.tail_lines for one in asked] == [5, -1, -1]
    assert 1767261600_100 <= asked[-1].options.since_ms <= 1767261601_000


def test_logs_that_never_began_are_an_error() -> None:
    class Logs:
        def logs(self, request: operator_pb2.LogsRequest) -> Iterator[operator_pb2.LogsResponse]:
            raise CallError("not connected", code="UNAVAILABLE")
            yield

    with pytest.raises(CallError, match="not connected"):
        list(follow(Logs(), operator_pb2.LogsRequest()))  # type: ignore[arg-type]
