"""One run of edgectl: its options, configuration and connection, each made when first needed."""

import argparse
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgectl import config, config_file
from edgectl.errors import CliError, UsageError

if TYPE_CHECKING:
    from edgectl.client import Client
    from edgectl.output import Printer
    from edgectl.reader import Reader
    from edgectl.resources import Item
    from edgectl.site.access import Access
    from edgectl.site.client import SiteClient

DEFAULT_REQUEST_TIMEOUT = "30s"


class Invocation:
    """Given to every verb. Use as a context manager: leaving it closes the connection."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._client: Client | None = None
        self._site: SiteClient | None = None

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
        if self._site is not None:
            self._site.close()

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
        if self.explicit_namespace:
            return self.explicit_namespace
        if self.at_site and self.access.grant is not None:
            return self.access.grant.namespace or config.DEFAULT_NAMESPACE
        return self.connection.namespace

    @property
    def _timeout_s(self) -> float:
        from edgectl.durations import option_seconds

        timeout = getattr(self.options, "request_timeout", DEFAULT_REQUEST_TIMEOUT)
        return option_seconds(timeout, "--request-timeout")

    @cached_property
    def client(self) -> "Client":
        """The orchestrator. Raises UsageError where the command line names a site."""
        if self.at_site:
            raise UsageError(
                "only an orchestrator knows that; the nodes of a site do not",
                "without --site-endpoint edgectl asks the orchestrator of the context",
            )
        from edgectl.client import Client

        endpoint = getattr(self.options, "endpoint", "")
        endpoints = (config.checked_endpoint(endpoint),) if endpoint else self.connection.endpoints
        self._client = Client(self.connection, endpoints, self._timeout_s)
        return self._client

    # --- the nodes of a site instead of an orchestrator -----------------------------------------

    @property
    def at_site(self) -> bool:
        """Nodes of a site are asked, and no orchestrator."""
        return hasattr(self.options, "site_endpoint")

    @cached_property
    def access(self) -> "Access":
        """As whom a site is entered. Raises CliError."""
        from edgectl.site import access

        token = access.given_token(getattr(self.options, "break_glass_token", ""))
        if token:
            return access.by_token(token)
        try:
            return access.by_certificate(self.connection)
        except CliError as error:
            error.hints = (*error.hints, "--break-glass-token FILE enters a site without a context")
            raise

    @cached_property
    def site(self) -> "SiteClient":
        from edgectl.site import link
        from edgectl.site.client import SiteClient
        from edgectl.site.sessions import Sessions, default_directory

        endpoints = [
            config.checked_endpoint(link.normal(endpoint))
            for endpoint in self.options.site_endpoint
        ]
        sessions = Sessions(default_directory(), self.access)
        opener = link.opener(self.access, sessions, self._timeout_s)
        self._site = SiteClient(endpoints, opener)
        return self._site

    @property
    def reader(self) -> "Reader":
        """Whoever is asked."""
        return self.site if self.at_site else self.client

    def printer(self, output: str, *, namespaces: bool, show_headers: bool) -> "Printer":
        """Of what `reader` gives. Raises UsageError for an unknown format."""
        from edgectl.output import Printer

        chosen = Printer
        if self.at_site:
            from edgectl.site.presenting import SitePrinter

            chosen = SitePrinter
        return chosen(output, namespaces=namespaces, show_headers=show_headers)

    def described(self, item: "Item") -> list[str]:
        """The lines of describe, without its events."""
        if self.at_site:
            from edgectl.site.presenting import described
        else:
            from edgectl.describing import description as described
        return described(item)
