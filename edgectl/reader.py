"""What verbs that read need of whoever answers: an orchestrator, or the nodes of a site.

`edgectl.client.Client` and `edgectl.site.client.SiteClient` both have it; `Invocation.reader` gives
the one that the command line names. Errors are CallError.
"""

from collections.abc import Iterator
from typing import Protocol

from polder.v1 import common_pb2, operator_pb2


class LogSource(Protocol):
    """Where a container's lines come from."""

    def logs(self, request: operator_pb2.LogsRequest) -> Iterator[operator_pb2.LogsResponse]: ...


class WatchSource(Protocol):
    """Where changes of resources come from."""

    def watch(
        self, request: operator_pb2.WatchRequest, timeout_s: float | None = None
    ) -> Iterator[operator_pb2.WatchResponse]: ...


class Reader(LogSource, WatchSource, Protocol):
    """`endpoints`: where a broken stream may go on. `answered_by`: who gave the last answer, and of
    what age in milliseconds it was (0: it is current)."""

    @property
    def endpoints(self) -> tuple[str, ...]: ...

    @property
    def answered_by(self) -> tuple[str, int]: ...

    def get(self, ref: common_pb2.ResourceRef) -> operator_pb2.GetResponse: ...

    def list_all(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> tuple[list[common_pb2.Resource], int]: ...

    def story(self, ref: common_pb2.ResourceRef) -> operator_pb2.StoryResponse: ...

    def events(
        self, request: operator_pb2.EventsRequest
    ) -> Iterator[operator_pb2.EventsResponse]: ...

    def exec(
        self, requests: Iterator[operator_pb2.ExecRequest]
    ) -> Iterator[operator_pb2.ExecResponse]: ...

    def settle(self) -> None: ...
