"""The guard rails: freeze, thaw, guards, approve, fence. See `__init__`."""

from edgectl.arguments import Parser, Verb, completes, nothing, output


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
)
