"""What changes resources: apply, delete, label and the like. See `__init__`."""

from edgectl.arguments import (
    Parser,
    Verb,
    dry_run,
    files,
    output,
    targets,
    timeout,
    waiting,
)


def _apply(p: Parser) -> None:
    files(p)
    dry_run(p)
    output(p, "name, json or yaml")


def _delete(p: Parser) -> None:
    targets(p, "KIND NAME..., or KIND/NAME...", nargs="*")
    files(p, required=False)
    waiting(p)
    timeout(p, "5m")
    dry_run(p)
    p.add_argument("--ignore-not-found", action="store_true", help="absent is as good as deleted")


def _label(p: Parser) -> None:
    targets(p, "KIND/NAME..., then KEY=VALUE to set or KEY- to remove")
    p.add_argument("--overwrite", action="store_true", help="allow changing a label that is there")
    dry_run(p)


CHANGING = (
    Verb(
        "apply",
        "create or change what manifests describe",
        _apply,
        "apply",
        example="apply -f hello.yaml -f more/",
    ),
    Verb(
        "diff",
        "show what apply would change; exit code 0 nothing, 1 something, more: error",
        files,
        "diff",
        example="diff -f hello.yaml",
    ),
    Verb(
        "delete",
        "delete resources, and wait until they are gone",
        _delete,
        "delete",
        example="delete workload/hello --timeout 1m",
    ),
    Verb(
        "label",
        "set or remove labels",
        _label,
        "label:label",
        example="label node/edge-1 zone=ward-3 rack-",
    ),
)
