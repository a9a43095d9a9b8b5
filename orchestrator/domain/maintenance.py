"""Why a site's nodes get no new replicas, and whether what runs there has to leave.

Read by the leader's snapshot. A node's own switches are in its spec; here is what comes from its
site, from the site's provider, and from windows of maintenance, which open and close by themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from polder.manifest import ProviderSpec, SiteSpec
from polder.manifest.facts import Maintenance
from polder.manifest.quantity import format_timestamp


@dataclass(frozen=True, slots=True)
class Standing:
    """`cordoned`: why no new replicas come, empty when they do. `draining`: those there leave."""

    cordoned: str = ""
    draining: bool = False


AT_WORK = Standing()


def cordons(
    site: str,
    site_spec: SiteSpec | None,
    provider: str,
    provider_spec: ProviderSpec | None,
    now: float,
) -> Standing:
    """What holds for all nodes of a site. `now`: unix seconds. A spec that is None is not readable
    by this version; it forbids what it might forbid, and moves nothing."""
    if site_spec is None:
        return Standing(f"the record of site {site} cannot be read")
    texts = []
    if site_spec.unschedulable:
        texts.append(f"site {site} is cordoned")
    if provider_spec is not None and provider_spec.unschedulable:
        texts.append(f"provider {provider} is cordoned")
    open_now = open_windows(site_spec.maintenance, now)
    if open_now:
        until = format_timestamp(max(window.end for window in open_now))
        texts.append(f"maintenance of site {site} until {until}")
    return Standing("; ".join(texts), any(window.drain for window in open_now))


def open_windows(windows: Iterable[Maintenance], now: float) -> tuple[Maintenance, ...]:
    """Those in which `now` (unix seconds) is."""
    return tuple(window for window in windows if window.start <= now < window.end)
