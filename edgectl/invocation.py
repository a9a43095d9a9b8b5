"""One run of edgectl: its options, configuration and connection, each made when first needed."""

import argparse
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgectl import config, config_file
from edgectl.errors import UsageError

if TYPE_CHECKING:
    from edgectl.client import Client

DEFAULT_REQUEST_TIMEOUT = "30s"


class Invocation:
    """Given to every verb. Use as a context manager: leaving it closes the connection."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._client: Client | None = None

    def __enter__(self) -> "Invocation":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def config_path(self) -> Path:
        return config_file.default_path(getattr(self.options, "config", ""))

    @cached_property
    def document(self) -> config.Document:
        return config_file.load(self.config_path)

    @cached_property
    def connection(self) -> config.Connection:
        """Raises CliError when no context can be used."""
        wanted = getattr(self.options, "context", "")
        return config_file.connection(self.config_path, self.document, wanted)

    @property
    def explicit_namespace(self) -> str:
        """What -n says; empty without it. Raises UsageError."""
        given: str = getattr(self.options, "namespace", "")
        if given and (len(given) > 63 or not given.replace("-", "a").isalnum()):
            raise UsageError(f"{given!r} is not the name of a namespace")
        return given

    @property
    def namespace(self) -> str:
        return self.explicit_namespace or self.connection.namespace

    @cached_property
    def client(self) -> "Client":
        from edgectl.client import Client
        from edgectl.durations import option_seconds

        timeout = getattr(self.options, "request_timeout", DEFAULT_REQUEST_TIMEOUT)
        seconds = option_seconds(timeout, "--request-timeout")
        endpoint = getattr(self.options, "endpoint", "")
        endpoints = (config.checked_endpoint(endpoint),) if endpoint else self.connection.endpoints
        self._client = Client(self.connection, endpoints, seconds)
        return self._client
