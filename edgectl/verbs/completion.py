"""`edgectl completion SHELL`, and the hidden verb that its scripts ask for names."""

import argparse
import sys

from edgectl.errors import CliError
from edgectl.invocation import Invocation

DYNAMIC = {
    "target": "resources",
    "node": "nodes",
    "kind": "kinds",
    "context": "contexts",
    "hold": "holds",
    "release": "releases",
    "upgrade": "upgrades",
}
_LOOKUP_TIMEOUT = "2s"  # a completion that takes longer is worse than none
_MAX_NAMES = 500


def run(invocation: Invocation) -> int:
    from edgectl.cli import build_parser

    parser = build_parser()
    shell = invocation.options.shell
    if shell == "fish":
        from edgectl.fish import script

        sys.stdout.write(script(parser, DYNAMIC))
        return 0
    import shtab

    _attach(parser, shtab)
    sys.stdout.write(shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell]))
    return 0


def candidates(invocation: Invocation) -> int:
    """Words for a completion script, one on a line. Silent when there is nothing to offer."""
    try:
        words = _words(invocation, invocation.options.what)
    except CliError:
        return 0
    for word in words[:_MAX_NAMES]:
        print(word)
    return 0


def _words(invocation: Invocation, what: str) -> list[str]:
    if what == "contexts":
        return [str(item["name"]) for item in invocation.document["contexts"]]
    from polder.manifest import KINDS

    if what == "kinds":
        return [info.name.lower() for info in KINDS.values()]
    invocation.options.request_timeout = _LOOKUP_TIMEOUT
    if what == "nodes":
        return [r.metadata.name for r in invocation.client.list_all("Node")[0]]
    if what == "holds":
        answer = invocation.client.guards("")
        return [*(hold.id for hold in answer.holds), *(s.id for s in answer.silences)]
    if what == "releases":
        return [release.version for release in invocation.client.releases().releases]
    if what == "upgrades":
        return [found.id for found in invocation.client.agent_upgrades().upgrades]
    words = [info.plural for info in KINDS.values()]
    for kind in ("Node", "Workload", "Replica"):
        namespace = invocation.namespace if KINDS[kind].namespaced else ""
        found, _ = invocation.client.list_all(kind, namespace)
        words.extend(f"{kind.lower()}/{r.metadata.name}" for r in found)
    return words


def _attach(parser: argparse.ArgumentParser, shtab: object) -> None:
    for action in parser._actions:
        what = getattr(action, "completes", "")
        if what == "file":
            action.complete = getattr(shtab, "FILE")  # type: ignore[attr-defined] # noqa: B009
        elif what in DYNAMIC:
            name = f"_edgectl_{DYNAMIC[what]}"
            action.complete = {"bash": name, "zsh": name}  # type: ignore[attr-defined]
        if isinstance(action, argparse._SubParsersAction):
            action.choices.pop("__complete", None)
            for child in action.choices.values():
                _attach(child, shtab)


_BASH = "".join(
    f"""
_edgectl_{what}() {{
  compgen -W "$(edgectl __complete {what} 2>/dev/null)" -- "$1"
}}"""
    for what in DYNAMIC.values()
)
_ZSH = "".join(
    f"""
_edgectl_{what}() {{
  local -a words
  words=(${{(f)"$(edgectl __complete {what} 2>/dev/null)"}})
  compadd -a words
}}"""
    for what in DYNAMIC.values()
)
_PREAMBLE = {"bash": _BASH + "\n", "zsh": _ZSH + "\n"}
