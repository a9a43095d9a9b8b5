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
    p.add_argument(
        "--ttl",
        default="",
        metavar="TIME",
        help="at most and by default 10m; for named nodes at most, for --count by default 24h",
    )
    p.add_argument(
        "--count", type=int, default=0, metavar="N", help="for a pallet of boxes, into --out"
    )
    p.add_argument(
        "--out", default="", metavar="DIR", help="a folder for each box: token, cloud-init, preseed"
    )
    p.add_argument("--prefix", default="", metavar="TEXT", help="of their names; default: SITE-")
    p.add_argument("--first", type=int, metavar="N", help="number of the first; default: 1")


def _places(p: Parser) -> None:
    text = "NODE, node/NAME, site/NAME or provider/NAME"
    completes(p.add_argument("nodes", metavar="TARGET", nargs="+", help=text), "target")
    dry_run(p)


def _nodes(p: Parser) -> None:
    text = "NODE, node/NAME, or site/NAME for all its nodes"
    completes(p.add_argument("nodes", metavar="TARGET", nargs="+", help=text), "target")
    dry_run(p)


def _drain(p: Parser) -> None:
    _nodes(p)
    timeout(p, "10m")
    p.add_argument("--wait", nargs="?", const="true", default="true", choices=("true", "false"))
    p.add_argument(
        "--force-after",
        metavar="TIME",
        default="",
        help="what has not moved by then is stopped all the same; default: it is waited for",
    )


def _maintenance(p: Parser) -> None:
    action = p.add_argument("sites", metavar="SITE", nargs="+", help="NAME or site/NAME")
    completes(action, "target")
    p.add_argument(
        "--from",
        dest="start",
        metavar="TIME",
        default="",
        help="when it begins: now (default), +30m, 2026-11-22T03:00 or ...T03:00:00Z",
    )
    p.add_argument("--until", metavar="TIME", default="", help="when it ends; +2h: after --from")
    p.add_argument("--drain", action="store_true", help="its replicas move away meanwhile")
    p.add_argument("--clear", action="store_true", help="forget all its windows")
    dry_run(p)


def _revoke(p: Parser) -> None:
    targets(p, "node/NAME, operator/NAME or break-glass/SERIAL")
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
                "make one; it is printed alone. Or one for each box of a pallet, with --count",
                _token_create,
                "token:create",
                example="token create --site nl-utr-1 --node edge-1",
            ),
        ),
    ),
    Verb(
        "cordon",
        "place no new replicas on nodes, or at sites or providers",
        _places,
        "nodes:cordon",
        example="cordon edge-1 site/nl-utr-2",
    ),
    Verb(
        "uncordon",
        "allow new replicas again; also ends a node's drain",
        _places,
        "nodes:uncordon",
        example="uncordon edge-1",
    ),
    Verb(
        "drain",
        "move the replicas of nodes elsewhere",
        _drain,
        "drain",
        example="drain edge-1 --timeout 5m --force-after 30m",
    ),
    Verb(
        "undrain",
        "let what has not moved yet stay; the nodes stay cordoned",
        _nodes,
        "nodes:undrain",
        example="undrain edge-1",
    ),
    Verb(
        "maintenance",
        "see and set the windows in which a site is left alone",
        _maintenance,
        "maintenance",
        example="maintenance site/nl-utr-1 --from 2026-11-22T03:00 --until +2h --drain",
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
