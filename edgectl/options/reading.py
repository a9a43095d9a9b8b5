"""What shows and explains: get, describe, why, plan, logs, events, wait. See `__init__`."""

from edgectl.arguments import (
    Parser,
    Verb,
    completes,
    files,
    nothing,
    output,
    selector,
    targets,
    timeout,
)


def _get(p: Parser) -> None:
    targets(
        p,
        "KIND[,KIND...], KIND NAME..., or KIND/NAME...; also regions, members, concentration and "
        "compliance",
    )
    output(p)
    selector(p)
    p.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")
    p.add_argument("-w", "--watch", action="store_true", help="then show every change")
    p.add_argument("--no-headers", action="store_true", help="rows alone")


def _why(p: Parser) -> None:
    targets(p, "workload/NAME or replica/NAME", nargs="*")
    files(p, required=False)
    completes(
        p.add_argument(
            "--node", action="append", default=[], metavar="NAME", help="only this node"
        ),
        "node",
    )
    p.add_argument("--site", action="append", default=[], metavar="NAME", help="only its nodes")
    output(p, "json or yaml")


def _plan(p: Parser) -> None:
    files(p)
    output(p, "json or yaml")


def _lose(p: Parser) -> None:
    p.add_argument(
        "losses",
        metavar="WHAT/NAME",
        nargs="+",
        help="region/, provider/, country/, law/, site/ or node/NAME; all at once",
    )
    output(p, "json or yaml")


def _describe(p: Parser) -> None:
    targets(p, "KIND, KIND NAME..., or KIND/NAME...")
    selector(p)
    p.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")


def _one_target(p: Parser) -> None:
    action = p.add_argument("target", metavar="TARGET", help="replica/NAME, workload/NAME, or NAME")
    completes(action, "target")
    completes(p.add_argument("-c", "--container", default="", metavar="NAME"), "nothing")


def _logs(p: Parser) -> None:
    _one_target(p)
    p.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    p.add_argument("--tail", type=int, default=-1, metavar="LINES", help="only the last (-1: all)")
    p.add_argument("--since", default="", metavar="TIME", help="such as 10m, or 2026-01-31T14:00Z")
    p.add_argument("-p", "--previous", action="store_true", help="of the container before this one")
    p.add_argument("--timestamps", action="store_true", help="the time before each line")
    p.add_argument("--all-replicas", action="store_true", help="all of a workload, lines prefixed")


def _exec(p: Parser) -> None:
    _one_target(p)
    p.add_argument("-i", "--stdin", action="store_true", help="pass standard input on")
    p.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    p.add_argument("command", nargs="*", metavar="-- COMMAND", help="command and arguments")


def _events(p: Parser) -> None:
    p.add_argument("--for", dest="object", default="", metavar="KIND/NAME", help="of one resource")
    p.add_argument("-w", "--watch", action="store_true", help="go on with new events")
    p.add_argument("-A", "--all-namespaces", action="store_true", help="all (the default)")
    p.add_argument("--limit", type=int, default=500, metavar="N", help="at most; default 500")
    p.add_argument("--warnings", action="store_true", help="only warnings")
    output(p, "wide or json")


def _wait(p: Parser) -> None:
    targets(p, "KIND NAME..., or KIND/NAME...")
    selector(p)
    p.add_argument(
        "--for",
        dest="condition",
        required=True,
        metavar="WHAT",
        help="ready, running, delete, complete, failed, condition=TYPE[=STATUS] or "
        "jsonpath={PATH}[=VALUE]",
    )
    timeout(p, "60s")


def _explain(p: Parser) -> None:
    action = p.add_argument("path", nargs="?", default="", metavar="KIND[.FIELD...]")
    completes(action, "kind")
    p.add_argument("--recursive", action="store_true", help="fields of fields too")


READING = (
    Verb(
        "get",
        "list resources, or show some",
        _get,
        "get",
        example="get nodes,workloads -o wide",
        at_site="get",
    ),
    Verb(
        "describe",
        "tell everything about a resource",
        _describe,
        "describe",
        example="describe node/edge-1",
        at_site="describe",
    ),
    Verb(
        "why",
        "tell why replicas are where they are, or nowhere, and what would help",
        _why,
        "why",
        example="why workload/hello --node edge-1",
    ),
    Verb(
        "plan",
        "show what apply would place, move, stop and preempt; changes nothing",
        _plan,
        "plan",
        example="plan -f hello.yaml",
    ),
    Verb(
        "simulate",
        "try out what cannot be tried",
        nothing,
        children=(
            Verb(
                "lose",
                "show what would be left if something went dark at once",
                _lose,
                "simulate:lose",
                example="simulate lose provider/nl-telco law/US-CLOUD-ACT",
            ),
        ),
    ),
    Verb(
        "logs",
        "print what a replica's container writes",
        _logs,
        "logs",
        example="logs -f replica/hello-0 --tail 20",
        at_site="logs",
    ),
    Verb(
        "exec",
        "run a command in a replica's container",
        _exec,
        "exec",
        example="exec -it replica/hello-0 -- sh",
        at_site="exec",
    ),
    Verb(
        "events",
        "show what happened",
        _events,
        "events",
        example="events -w --for workload/hello",
        at_site="events",
    ),
    Verb(
        "wait",
        "wait for a condition; a resource may yet have to appear",
        _wait,
        "wait",
        example="wait workload/hello --for=ready --timeout 2m",
        at_site="wait",
    ),
    Verb(
        "explain",
        "show the fields of a kind",
        _explain,
        "explain",
        example="explain workload.template.containers",
    ),
)
