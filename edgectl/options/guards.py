"""The guard rails: freeze, thaw, guards, approve, fence, override. See `__init__`."""

from edgectl.arguments import Parser, Verb, completes, dry_run, nothing, output


def _freeze(p: Parser) -> None:
    p.add_argument("--reason", default="", metavar="TEXT", help="for those who wonder why")
    p.add_argument(
        "--dry-run", action="store_true", help="at a site: say what would happen; change nothing"
    )


def _guards(p: Parser) -> None:
    output(p, "json or yaml")


def _approve(p: Parser) -> None:
    action = p.add_argument("ids", metavar="ID", nargs="+", help="as edgectl guards shows it")
    completes(action, "hold")


def _fence(p: Parser) -> None:
    action = p.add_argument("replica", metavar="REPLICA", help="such as db-0")
    completes(action, "target")
    p.add_argument("--force", action="store_true", help="do it, and take the risk that is told")


def _overrides(p: Parser) -> None:
    p.add_argument("-A", "--all-namespaces", action="store_true", help="all (the default)")
    output(p, "wide, json or yaml")


def _override(p: Parser) -> None:
    action = p.add_argument("name", metavar="NAME", help="a replica, or site/NAME for all of it")
    completes(action, "target")
    p.add_argument("--field", default="", metavar="FIELD", help="stopped, placedOn or frozen")
    p.add_argument("--site", default="", metavar="SITE", help="where two sites decided of it")
    p.add_argument("--reason", default="", metavar="TEXT", help="for those who wonder why")
    dry_run(p)


GUARDS = (
    Verb(
        "freeze",
        "stop all automation, or that of --namespace, until thaw; what runs runs on",
        _freeze,
        "guards:freeze",
        example='freeze --namespace umc-utrecht --reason "incident 4711"',
        at_site="local:freeze",
    ),
    Verb(
        "thaw",
        "let automation go on, everywhere or in --namespace",
        nothing,
        "guards:thaw",
        example="thaw --namespace umc-utrecht",
    ),
    Verb(
        "guards",
        "show what holds automation back: freezes, held stops, mass silence",
        _guards,
        "guards:show",
        example="guards",
    ),
    Verb(
        "approve",
        "let go what a guard rail holds back",
        _approve,
        "guards:approve",
        example="approve stops-1a2b3c4d5e",
    ),
    Verb(
        "fence",
        "vouch that an exclusive replica on a node that is not heard does not run any more",
        _fence,
        "fence:run",
        example="fence db-0 --force",
    ),
    Verb(
        "override",
        "see and settle what operators decided at sites themselves",
        nothing,
        children=(
            Verb(
                "list",
                "what stands, and what was decided against it",
                _overrides,
                "override:show",
                example="override list",
            ),
            Verb(
                "accept",
                "let it stand, although something else was decided",
                _override,
                "override:accept",
                example="override accept db-0",
            ),
            Verb(
                "drop",
                "take it back; its site obeys when it gets its next plan",
                _override,
                "override:drop",
                example='override drop db-0 --reason "repaired"',
            ),
        ),
    ),
)
