"""What is done to nodes and sites: joining, cordon, drain, revocation. See `__init__`."""

from edgectl.arguments import (
    Parser,
    Verb,
    completes,
    dry_run,
    nothing,
    targets,
    timeout,
)


def _token_create(p: Parser) -> None:
    p.add_argument("--site", required=True, metavar="SITE", help="where the node will stand")
    p.add_argument("--node", default="", metavar="NAME", help="the only node that may use it")
    p.add_argument("--ttl", default="10m", metavar="TIME", help="at most and by default 10m")


def _nodes(p: Parser) -> None:
    completes(p.add_argument("nodes", metavar="NODE", nargs="+", help="NAME or node/NAME"), "node")
    dry_run(p)


def _drain(p: Parser) -> None:
    _nodes(p)
    timeout(p, "10m")
    p.add_argument("--wait", nargs="?", const="true", default="true", choices=("true", "false"))


def _revoke(p: Parser) -> None:
    targets(p, "node/NAME or operator/NAME")
    p.add_argument("--reason", default="", help="kept with the record and shown in events")
    p.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _taint(p: Parser) -> None:
    targets(p, "NODE..., then KEY[=VALUE]:EFFECT to set or KEY[:EFFECT]- to remove")
    p.add_argument("--overwrite", action="store_true", help="allow changing a taint that is there")
    dry_run(p)


NODES = (
    Verb(
        "token",
        "make join tokens for nodes",
        nothing,
        children=(
            Verb(
                "create",
                "make one; it is printed alone",
                _token_create,
                "token:create",
                example="token create --site nl-utr-1 --node edge-1",
            ),
        ),
    ),
    Verb(
        "cordon", "place no new replicas on nodes", _nodes, "nodes:cordon", example="cordon edge-1"
    ),
    Verb(
        "uncordon",
        "allow replicas on nodes again",
        _nodes,
        "nodes:uncordon",
        example="uncordon edge-1",
    ),
    Verb(
        "drain",
        "move the replicas of nodes elsewhere",
        _drain,
        "drain",
        example="drain edge-1 --timeout 5m",
    ),
    Verb(
        "taint",
        "set or remove taints of nodes",
        _taint,
        "label:taint",
        example="taint edge-1 maintenance=true:NoSchedule",
    ),
    Verb(
        "revoke",
        "refuse a node's or operator's identity from now on",
        _revoke,
        "revoke",
        example="revoke node/edge-1 --reason stolen",
    ),
)
