"""The fleet's agents: releases, and upgrades in waves. See `__init__`."""

from edgectl.arguments import Parser, Verb, completes, dry_run, nothing, output


def _upload(p: Parser) -> None:
    action = p.add_argument(
        "release", metavar="FILE", help="what edge-orchestrator ca sign-release wrote"
    )
    completes(action, "file")
    action = p.add_argument(
        "--deb",
        action="append",
        default=[],
        metavar="FILE",
        help="a package of it; once for each architecture",
    )
    completes(action, "file")


def _releases(p: Parser) -> None:
    output(p, "json or yaml")


def _delete(p: Parser) -> None:
    completes(p.add_argument("version", metavar="VERSION"), "release")


def _upgrade(p: Parser) -> None:
    action = p.add_argument("--version", required=True, metavar="VERSION", help="a release")
    completes(action, "release")
    p.add_argument(
        "--waves",
        default="1%,10%,100%",
        metavar="SHARES",
        help="rising shares of the nodes, the last 100%% (default 1%%,10%%,100%%)",
    )
    p.add_argument(
        "--at-once",
        default="5%",
        metavar="SHARE",
        help="of the nodes, under way at the same time at most, and at least one node (default "
        "5%%; 0%%: as the wave)",
    )
    p.add_argument(
        "--soak",
        default="10m",
        metavar="TIME",
        help="how long a wave must have run well before the next (default 10m)",
    )
    p.add_argument(
        "--patience",
        default="",
        metavar="TIME",
        help="how long a new agent may take to be well before its box goes back (default 5m)",
    )
    p.add_argument(
        "--failures",
        default=-1,
        type=int,
        metavar="N",
        help="it pauses when more nodes than this failed (default 0; of a hundred nodes and more "
        "one in a hundred of those whose wave has come)",
    )
    p.add_argument(
        "--site", action="append", default=[], metavar="SITE", help="only these; may be repeated"
    )
    completes(
        p.add_argument(
            "--node",
            action="append",
            default=[],
            metavar="NODE",
            help="only these; may be repeated",
        ),
        "node",
    )
    dry_run(p)


def _status(p: Parser) -> None:
    completes(
        p.add_argument("id", metavar="ID", nargs="?", default="", help="default: the last"),
        "upgrade",
    )
    p.add_argument("-w", "--watch", action="store_true", help="until it ends or pauses")
    output(p, "json or yaml")


def _one(p: Parser) -> None:
    completes(
        p.add_argument("id", metavar="ID", help="as edgectl agent status shows it"), "upgrade"
    )


AGENTS = (
    Verb(
        "agent",
        "upgrade the agents of the fleet",
        nothing,
        children=(
            Verb(
                "upload",
                "bring a signed release and its packages",
                _upload,
                "agent:upload",
                example="agent upload v.release --deb polder-agent_0.2.0-1_amd64.deb",
            ),
            Verb(
                "releases",
                "which releases are here, and how many nodes run which version",
                _releases,
                "agent:releases",
                example="agent releases",
            ),
            Verb(
                "delete",
                "forget a release that no upgrade needs",
                _delete,
                "agent:delete",
                example="agent delete 0.1.0-1",
            ),
            Verb(
                "upgrade",
                "begin an upgrade in waves; boxes that do not come through go back by themselves",
                _upgrade,
                "agent:upgrade",
                example="agent upgrade --version 0.2.0-1 --waves 1%,10%,100%",
            ),
            Verb(
                "status",
                "how far an upgrade has come",
                _status,
                "agent:status",
                example="agent status -w",
            ),
            Verb(
                "pause",
                "tell no further node; who installs ends it",
                _one,
                "agent:pause",
                example="agent pause 3-9a0c",
            ),
            Verb(
                "resume",
                "go on; failed nodes try once more",
                _one,
                "agent:resume",
                example="agent resume 3-9a0c",
            ),
            Verb(
                "abort",
                "end it; what was upgraded stays so",
                _one,
                "agent:abort",
                example="agent abort 3-9a0c",
            ),
        ),
    ),
)
