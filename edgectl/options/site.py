"""What operators decide at a site itself, without an orchestrator. See `__init__`.

These verbs go with --site-endpoint alone; others that do have `at_site` in their rows.
"""

from edgectl.arguments import Parser, Verb, completes, dry_run, output, targets

_NEEDS_SITE = "local:needs_site"


def _change(p: Parser) -> None:
    p.add_argument("--reason", default="", metavar="TEXT", help="kept in the site's journal")
    dry_run(p)
    output(p, "json or yaml")


def _replicas(p: Parser) -> None:
    targets(p, "REPLICA, replica/NAME, or workload/NAME for all of it at the site")
    _change(p)


def _move(p: Parser) -> None:
    completes(p.add_argument("target", metavar="REPLICA", help="such as db-0"), "target")
    completes(p.add_argument("--to", required=True, metavar="NODE", help="a standby"), "node")
    _change(p)


def _overrides(p: Parser) -> None:
    p.add_argument("-A", "--all", action="store_true", help="also those that were taken back")
    output(p, "wide, json or yaml")


SITE = (
    Verb(
        "stop",
        "at a site: stop replicas; nobody starts them until start",
        _replicas,
        _NEEDS_SITE,
        example='stop db-0 --site-endpoint 10.1.0.11 --reason "disk full"',
        at_site="local:stop",
    ),
    Verb(
        "start",
        "at a site: let replicas run that were stopped",
        _replicas,
        _NEEDS_SITE,
        example="start db-0 --site-endpoint 10.1.0.11",
        at_site="local:start",
    ),
    Verb(
        "restart",
        "at a site: start the containers of replicas anew, where they are",
        _replicas,
        _NEEDS_SITE,
        example="restart db-0 --site-endpoint 10.1.0.11",
        at_site="local:restart",
    ),
    Verb(
        "move",
        "at a site: let a standby take a replica over",
        _move,
        _NEEDS_SITE,
        example="move db-0 --to edge-2 --site-endpoint 10.1.0.11",
        at_site="local:move",
    ),
    Verb(
        "unfreeze",
        "at a site: let it take over and move again",
        _change,
        _NEEDS_SITE,
        example="unfreeze --site-endpoint 10.1.0.11",
        at_site="local:unfreeze",
    ),
    Verb(
        "overrides",
        "at a site: list what operators decided there",
        _overrides,
        _NEEDS_SITE,
        example="overrides --site-endpoint 10.1.0.11",
        at_site="local:overrides",
    ),
)
