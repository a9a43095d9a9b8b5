"""Asking every node of a site at once, beginning with one. Called by `client`.

Each node that answers names the others and where they are, until there is nobody new: no node has
to be asked about another. What does not answer is part of the result.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from edgectl.errors import CallError, CliError
from edgectl.site.link import Link, Opener
from edgectl.site.picture import Picture, Silent
from edgectl.text import safe
from polder.v1 import local_pb2

NODES_MAX = 64
ENDPOINTS_MAX = 8  # of one node
ASKED_AT_ONCE = 32

Warn = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(f"warning: {safe(text)}", file=sys.stderr, flush=True)


class Survey:
    """Keeps the links that it made, for the next look. One `look` at a time."""

    def __init__(self, endpoints: Sequence[str], open_: Opener, warn: Warn = to_stderr) -> None:
        self._given = tuple(dict.fromkeys(endpoints))
        self._open = open_
        self._warn = warn
        self._told: set[str] = set()
        self.links: dict[str, Link] = {}

    def close(self) -> None:
        for link in self.links.values():
            link.close()

    def look(self, namespace: str = "") -> Picture:
        """What all of them say. Raises CallError when none answers or lets us in."""
        answers: dict[str, local_pb2.ShowResponse] = {}
        silent: dict[str, Silent] = {}
        pool = ThreadPoolExecutor(max_workers=ASKED_AT_ONCE)
        try:
            self._ask_known(pool, namespace, answers)
            known = {link.endpoint for link in self.links.values()}
            new: dict[str, tuple[str, ...]] = {
                endpoint: (endpoint,) for endpoint in self._given if endpoint not in known
            }
            named = False
            while new or not named:
                self._ask_new(pool, namespace, new, named, answers, silent)
                named, new = True, self._unknown(answers, silent)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if not answers:
            raise _nobody(list(silent.values()))
        owners = {
            endpoint: peer.node
            for shown in answers.values()
            for peer in shown.peers
            for endpoint in peer.local_endpoints
        }
        kept = [one for name, one in silent.items() if one.node or name not in owners]
        now_ms = time.time_ns() // 1_000_000
        return Picture(self.links[min(answers)].site, now_ms, answers, tuple(kept))

    def _ask_known(
        self,
        pool: ThreadPoolExecutor,
        namespace: str,
        answers: dict[str, local_pb2.ShowResponse],
    ) -> None:
        asked = {pool.submit(link.show, namespace): link for link in self.links.values()}
        for future in as_completed(asked):
            link = asked[future]
            try:
                answers[link.node] = future.result()
            except CallError:
                del self.links[link.node]  # it is tried anew, as if it had not been known
                link.close()

    def _ask_new(
        self,
        pool: ThreadPoolExecutor,
        namespace: str,
        wanted: Mapping[str, tuple[str, ...]],
        named: bool,
        answers: dict[str, local_pb2.ShowResponse],
        silent: dict[str, Silent],
    ) -> None:
        """`wanted`: endpoints by what is asked; `named`: that is a node's name."""
        asked = {
            pool.submit(self._ask, name if named else "", endpoints, namespace): (name, endpoints)
            for name, endpoints in wanted.items()
        }
        for future in as_completed(asked):
            name, endpoints = asked[future]
            try:
                link, shown = future.result()
            except CallError as error:
                silent[name] = Silent(name if named else "", endpoints, error)
                continue
            if self._take(link):
                answers[link.node] = shown

    def _ask(
        self, node: str, endpoints: tuple[str, ...], namespace: str
    ) -> tuple[Link, local_pb2.ShowResponse]:
        link = self._reach(node, endpoints)
        try:
            return link, link.show(namespace)
        except BaseException:
            link.close()
            raise

    def _reach(self, node: str, endpoints: tuple[str, ...]) -> Link:
        """The link to a node at the first of its endpoints that leads to it; all at once, since a
        box has addresses that lead nowhere from here."""
        if not endpoints:
            raise CallError("nobody knows its address", code="UNAVAILABLE", reason="NoAddress")
        if len(endpoints) == 1:
            return self._at(node, endpoints[0])
        pool = ThreadPoolExecutor(max_workers=len(endpoints))
        tries = [pool.submit(self._at, node, endpoint) for endpoint in endpoints]
        pool.shutdown(wait=False)
        errors: list[CallError] = []
        for future in as_completed(tries):
            try:
                link = future.result()
            except CallError as error:
                errors.append(error)
                continue
            for other in tries:
                if other is not future:
                    other.add_done_callback(_close_late)
            return link
        raise max(errors, key=lambda error: bool(error.reason))  # a refusal says most

    def _at(self, node: str, endpoint: str) -> Link:
        link = self._open(endpoint)
        expected = {(node, known.site) for known in self.links.values()}
        if node and (link.node, link.site) not in expected:
            link.close()
            text = f"{endpoint}: {link.node} of site {link.site} answers there"
            raise CallError(text, code="UNAVAILABLE", reason="OtherNode")
        return link

    def _take(self, link: Link) -> bool:
        """False: it is there already, or of another site than the first."""
        if link.node in self.links:
            link.close()
            return False
        other = next((known for known in self.links.values() if known.site != link.site), None)
        if other is not None:
            link.close()
            raise CliError(
                f"{other.endpoint} is {other.node} of site {other.site}, and {link.endpoint} is "
                f"{link.node} of site {link.site}",
                "name nodes of one site at a time",
            )
        self.links[link.node] = link
        for text in link.warnings:
            if text not in self._told:
                self._told.add(text)
                self._warn(f"{link.node}: {text}")
        return True

    def _unknown(
        self, answers: Mapping[str, local_pb2.ShowResponse], silent: Mapping[str, Silent]
    ) -> dict[str, tuple[str, ...]]:
        """Nodes that those who answered name, with all endpoints that any of them knows."""
        found: dict[str, dict[str, None]] = {}
        for shown in answers.values():
            for peer in shown.peers:
                if peer.node not in answers and peer.node not in silent:
                    endpoints = found.setdefault(peer.node, {})
                    endpoints.update(dict.fromkeys(peer.local_endpoints))
        room = NODES_MAX - len(answers) - len(silent)
        return {
            node: tuple(endpoints)[:ENDPOINTS_MAX]
            for node, endpoints in sorted(found.items())[: max(0, room)]
        }


def _close_late(future: Future[Link]) -> None:
    """Of several endpoints of one node another was faster."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()


def _nobody(silent: Sequence[Silent]) -> CallError:
    """Nobody answered, or nobody let us in."""
    refused = next((one.error for one in silent if one.error.reason), None)
    if refused is not None:
        return refused
    tried = "; ".join(one.error.message for one in silent)
    return CallError(
        f"no node of the site can be reached: {tried}",
        "is this machine in the site's network? agents listen for operators at port 7446 unless "
        "local_listen says otherwise",
        code="UNAVAILABLE",
    )


def unreached(picture: Picture) -> list[str]:
    """For people: one line for each that did not answer, and who still hears it."""
    lines = []
    for one in picture.silent:
        hearing = picture.hearing(one.node) if one.node else []
        heard = f" ({' and '.join(hearing)} can hear it)" if hearing else ""
        lines.append(f"{one.label} did not answer{heard}: {one.error.message}")
    return lines
