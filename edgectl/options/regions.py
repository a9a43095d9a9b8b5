"""What is done to regions: drills. `get regions` is in `reading`. See `__init__`."""

from edgectl.arguments import Parser, Verb, completes, dry_run, nothing, output


def _drill_region(p: Parser) -> None:
    completes(p.add_argument("region", metavar="REGION", help="NAME or region/NAME"), "nothing")
    p.add_argument(
        "--for", dest="duration", default="", metavar="TIME", help="how long: 10s to 1h, as in 2m"
    )
    p.add_argument("--reason", default="", metavar="TEXT", help="for those who wonder why")
    p.add_argument("--end", action="store_true", help="end the drill that runs")
    p.add_argument(
        "--follow",
        action="store_true",
        help="watch the drill that runs, or show the report of the last one",
    )
    dry_run(p)
    output(p, "json or yaml")


REGIONS = (
    Verb(
        "drill",
        "rehearse a loss on the live system",
        nothing,
        children=(
            Verb(
                "region",
                "let the members of a region refuse everyone for a while, and measure what follows",
                _drill_region,
                "drill:region",
                example='drill region eu-central --for 2m --reason "quarterly"',
            ),
        ),
    ),
)
