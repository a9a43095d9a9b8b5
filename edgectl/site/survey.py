"""Asking every node of a site at once, beginning with one. Called by `client`.

Each node that answers names the others and where they are, until there is nobody new: no node has
to be asked about another. What does not answer is part of the result.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, zip_longest

from edgectl.errors import CallError, CliError
from edgectl.site.link import Link, Opener
from edgectl.site.picture import Picture, Silent
from edgectl.site.together import together
from edgectl.text import safe
from polder.v1 import local_pb2

NODES_MAX = 64
ENDPOINTS_MAX = 8  # of one node

Warn = Callable[[str], None]
_Wanted = tuple[str, str]
"""A node's name, or an endpoint of nobody knows whom; the other is empty."""


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

    def look(self) -> Picture:
        """What all of them say of all that we may see. Raises CallError when none lets us in."""
        answers = self._ask_known()
        silent: dict[str, Silent] = {}
        known = {link.endpoint for link in self.links.values()}
        given = {("", one): (one,) for one in self._given if one not in known}
        self._ask_new(given, answers, silent)
        while new := self._unknown(answers, silent):
            self._ask_new(new, answers, silent)
        if not answers:
            raise _nobody(list(silent.values()))
        owners = {
            endpoint: peer.node
            for shown in answers.values()
            for peer in shown.peers
            for endpoint in peer.local_endpoints
        }
        kept = [one for one in silent.values() if one.node or one.endpoints[0] not in owners]
        now_ms = time.time_ns() // 1_000_000
        return Picture(self.links[min(answers)].site, now_ms, answers, tuple(kept))

    def _ask_known(self) -> dict[str, local_pb2.ShowResponse]:
        """One that fails is forgotten, and tried anew as if it had not been known."""
        answers = {}
        tasks = {node: partial(link.show, "") for node, link in self.links.items()}
        for node, found in together(tasks):
            if isinstance(found, CallError):
                self.links.pop(node).close()
            else:
                answers[node] = found
        return answers

    def _ask_new(
        self,
        wanted: Mapping[_Wanted, tuple[str, ...]],
        answers: dict[str, local_pb2.ShowResponse],
        silent: dict[str, Silent],
    ) -> None:
        tasks = {key: partial(self._ask, key[0], endpoints) for key, endpoints in wanted.items()}
        for (node, endpoint), found in together(tasks):
            if isinstance(found, CallError):
                silent[node or endpoint] = Silent(node, wanted[(node, endpoint)], found)
                continue
            link, shown = found
            if self._take(link):
                answers[link.node] = shown

    def _ask(self, node: str, endpoints: tuple[str, ...]) -> tuple[Link, local_pb2.ShowResponse]:
        link = self._reach(node, endpoints)
        try:
            return link, link.show("")
        except BaseException:
            link.close()
            raise

    def _reach(self, node: str, endpoints: tuple[str, ...]) -> Link:
        """The link to a node at an endpoint that leads to it; addresses of private networks may
        lead to others. Without its name: to whoever is there."""
        sites = {known.site for known in self.links.values()}
        while True:
            link = self._open(endpoints)
            if not node or (link.node == node and link.site in sites):
                return link
            link.close()
            endpoints = tuple(one for one in endpoints if one != link.endpoint)
            if not endpoints:
                text = f"{link.endpoint}: {link.node} of site {link.site} answers there"
                raise CallError(text, code="UNAVAILABLE", reason="OtherNode")

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
    ) -> dict[_Wanted, tuple[str, ...]]:
        """Nodes that those who answered name, first those that most of them do, with endpoints of
        each of them in turn: one that makes names and addresses up is not to hide the others."""
        found: dict[str, list[Sequence[str]]] = {}
        for shown in answers.values():
            peers = {peer.node: peer.local_endpoints for peer in shown.peers}
            for node in peers.keys() - answers.keys() - silent.keys():
                found.setdefault(node, []).append(peers[node])
        room = max(0, NODES_MAX - len(answers) - len(silent))
        chosen = sorted(found, key=lambda node: (-len(found[node]), node))[:room]
        return {(node, ""): _in_turn(found[node])[:ENDPOINTS_MAX] for node in chosen}


def _in_turn(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The first of each, the second of each, and so on; each once."""
    turns = chain.from_iterable(zip_longest(*lists))
    return tuple(dict.fromkeys(one for one in turns if one is not None))


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
