"""What changes a workload that runs: rollout, scale, set image, edit. See `__init__`."""

from edgectl.arguments import Parser, Verb, completes, dry_run, nothing, output, targets


def _one(p: Parser) -> None:
    completes(p.add_argument("target", metavar="TARGET", help="workload/NAME"), "target")


def _status(p: Parser) -> None:
    _one(p)
    p.add_argument("-w", dest="watch", action="store_const", const="true", default="true")
    p.add_argument(
        "--watch", choices=("true", "false"), help="false: say how far it is now, and no more"
    )
    p.add_argument(
        "--until",
        default="proven",
        choices=("available", "proven"),
        help="available: all replicas run it; proven (default): and it ran long enough",
    )
    p.add_argument("--timeout", metavar="TIME", default="0", help="give up then; default 0: never")
    output(p, "json or yaml")


def _history(p: Parser) -> None:
    _one(p)
    p.add_argument("--revision", type=int, default=0, metavar="N", help="the template of this one")
    output(p, "wide, json or yaml")


def _undo(p: Parser) -> None:
    _one(p)
    p.add_argument(
        "--to-revision",
        type=int,
        default=0,
        metavar="N",
        help="default: the last proven one before the newest",
    )
    dry_run(p)


def _several(p: Parser) -> None:
    targets(p, "workload/NAME...")
    dry_run(p)


def _scale(p: Parser) -> None:
    targets(p, "workload/NAME...")
    p.add_argument(
        "--replicas", type=int, required=True, metavar="N", help="how many there shall be"
    )
    p.add_argument(
        "--current-replicas", type=int, default=None, metavar="N", help="only if it has so many now"
    )
    dry_run(p)


def _set_image(p: Parser) -> None:
    targets(p, "workload/NAME..., then CONTAINER=IMAGE...; *=IMAGE for all containers")
    dry_run(p)


def _edit(p: Parser) -> None:
    completes(p.add_argument("target", metavar="TARGET", help="KIND/NAME"), "target")
    action = p.add_argument(
        "-f", "--filename", metavar="FILE", default="", help="go on with the text that was kept"
    )
    completes(action, "file")


_ROLLOUT = (
    Verb(
        "status",
        "follow a rollout to its end; exit code 1 if it does not end as asked",
        _status,
        "rollout:status",
        example="rollout status workload/hello --timeout 5m",
    ),
    Verb(
        "history",
        "list a workload's revisions, newest first",
        _history,
        "rollout:history",
        example="rollout history workload/hello --revision 3",
    ),
    Verb(
        "undo",
        "return to an earlier revision",
        _undo,
        "rollout:undo",
        example="rollout undo workload/hello --to-revision 3",
    ),
    Verb(
        "pause",
        "change no further replica until resume",
        _several,
        "rollout:pause",
        example="rollout pause workload/hello",
    ),
    Verb(
        "resume",
        "go on with a paused rollout",
        _several,
        "rollout:resume",
        example="rollout resume workload/hello",
    ),
    Verb(
        "restart",
        "replace every replica, as a rollout does",
        _several,
        "rollout:restart",
        example="rollout restart workload/hello",
    ),
)

ROLLOUTS = (
    Verb("rollout", "see and steer how a changed template spreads", nothing, children=_ROLLOUT),
    Verb(
        "scale",
        "set how many replicas there shall be",
        _scale,
        "scale",
        example="scale workload/hello --replicas 5",
    ),
    Verb(
        "set",
        "change one thing of a workload",
        nothing,
        children=(
            Verb(
                "image",
                "set the images of containers",
                _set_image,
                "set_image",
                example="set image workload/hello app=registry.example/hello:2",
            ),
        ),
    ),
    Verb(
        "edit",
        "open a resource in $VISUAL or $EDITOR and apply what is saved",
        _edit,
        "edit",
        example="edit workload/hello",
    ),
)
