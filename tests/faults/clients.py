"""Clients that apply, read and delete Configs through edgectl's own client, and note what they saw.

Each starts at another member and goes to the next as edgectl does. The values come from a small
set, so that an apply may also find what it wants there.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Sequence

from edgectl.client import Client
from edgectl.config import Connection
from edgectl.errors import CallError
from polder.v1 import common_pb2, operator_pb2
from tests.faults.history import Operation

CALL_S = 6.0
VALUES = 4
_OUTCOMES = {
    operator_pb2.APPLY_OUTCOME_CREATED: "created",
    operator_pb2.APPLY_OUTCOME_CONFIGURED: "configured",
    operator_pb2.APPLY_OUTCOME_UNCHANGED: "unchanged",
}
_PAUSE_S = (0.005, 0.06)


class Session:
    """One client's calls, each of which gives an Operation; None: refused for certain."""

    def __init__(
        self,
        number: int,
        connection: Connection,
        endpoints: Sequence[str],
        call_s: float = CALL_S,
    ) -> None:
        self._number = number
        self._client = Client(connection, endpoints, call_s, warn=lambda _: None)

    def close(self) -> None:
        self._client.close()

    def apply(self, key: str, value: str) -> Operation | None:
        document = {
            "apiVersion": "polder.eu/v1",
            "kind": "Config",
            "metadata": {"name": key, "namespace": "default"},
            "spec": {"data": {"value": value}},
        }
        wire = operator_pb2.Document(json=json.dumps(document).encode())

        def call() -> tuple[str, str, str, int]:
            (result,) = self._client.apply([wire]).results
            about = result.resource.metadata
            return _OUTCOMES[result.outcome], value, about.uid, about.generation

        return self._told("apply", key, call, value)

    def delete(self, key: str) -> Operation | None:
        def call() -> tuple[str, str, str, int]:
            self._client.delete(_ref(key))
            return "deleted", "", "", 0

        return self._told("delete", key, call)

    def get(self, key: str) -> Operation | None:
        def call() -> tuple[str, str, str, int]:
            found = self._client.get(_ref(key)).resource
            value = json.loads(found.spec_json)["data"]["value"]
            return "found", value, found.metadata.uid, found.metadata.generation

        return self._told("get", key, call)

    def _told(
        self, kind: str, key: str, call: Callable[[], tuple[str, str, str, int]], value: str = ""
    ) -> Operation | None:
        called = time.monotonic()
        uid, generation = "", 0
        try:
            outcome, value, uid, generation = call()
        except CallError as error:
            if error.code == "NOT_FOUND":
                outcome = "absent"
            elif error.unknown:
                outcome = "unknown"
            else:
                return None
        returned = time.monotonic()
        member, age_ms = self._client.answered_by
        age_s = age_ms / 1000 if kind == "get" else 0.0
        return Operation(
            self._number,
            key,
            kind,
            called,
            returned,
            outcome,
            value,
            uid,
            generation,
            age_s,
            member,
        )


def _ref(key: str) -> common_pb2.ResourceRef:
    return common_pb2.ResourceRef(kind="Config", namespace="default", name=key)


class Caller(threading.Thread):
    """Calls until it is told to stop; `seen` is complete when it has ended. `refused` counts."""

    def __init__(
        self, session: Session, keys: Sequence[str], chance: random.Random, until: float
    ) -> None:
        super().__init__(daemon=True)
        self.seen: list[Operation] = []
        self.refused = 0
        self.error: BaseException | None = None
        self._session = session
        self._keys = keys
        self._chance = chance
        self._until = until

    def run(self) -> None:
        try:
            while time.monotonic() < self._until:
                operation = self._call()
                if operation is None:
                    self.refused += 1
                else:
                    self.seen.append(operation)
                time.sleep(self._chance.uniform(*_PAUSE_S))
        except BaseException as error:
            self.error = error
        finally:
            self._session.close()

    def _call(self) -> Operation | None:
        key = self._chance.choice(self._keys)
        draw = self._chance.random()
        if draw < 0.45:
            return self._session.apply(key, f"v{self._chance.randrange(VALUES)}")
        if draw < 0.6:
            return self._session.delete(key)
        return self._session.get(key)
