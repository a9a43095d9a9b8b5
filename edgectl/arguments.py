"""The options of every verb, as a table. Called by `edgectl.cli`; imports argparse alone."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

Parser = argparse.ArgumentParser


@dataclass(frozen=True)
class Verb:
    """`run` is `module:function` under `edgectl.verbs`. A verb with children only groups them."""

    name: str
    help: str
    add: Callable[[Parser], None]
    run: str = ""
    example: str = ""
    children: tuple["Verb", ...] = ()
    hidden: bool = False


def add_common(parser: Parser) -> None:
    """Options that stand before or after the verb; an absent one leaves no attribute."""
    group = parser.add_argument_group("connection")
    absent = argparse.SUPPRESS
    group.add_argument("--config", metavar="FILE", default=absent, help="configuration file")
    group.add_argument("--context", metavar="NAME", default=absent, help="context to use")
    group.add_argument(
        "-n", "--namespace", metavar="NS", default=absent, help="namespace (the context's)"
    )
    group.add_argument(
        "--endpoint", metavar="HOST:PORT", default=absent, help="orchestrator to talk to"
    )
    group.add_argument(
        "--request-timeout", metavar="TIME", default=absent, help="for one call, such as 30s"
    )
    group.add_argument("--debug", action="store_true", default=absent, help=argparse.SUPPRESS)


def _nothing(_: Parser) -> None:
    pass


def _completes(action: argparse.Action, what: str) -> None:
    """Names what completion scripts offer for an argument (`edgectl.verbs.completion`)."""
    action.completes = what  # type: ignore[attr-defined]


def _files(p: Parser, *, required: bool = True) -> None:
    action = p.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        action="append",
        default=[],
        required=required,
        help="manifest file, directory, or - for standard input; may be repeated",
    )
    _completes(action, "file")
    p.add_argument("-R", "--recursive", action="store_true", help="descend into directories")


def _output(p: Parser, help_text: str = "wide, json, yaml, name or jsonpath=TEMPLATE") -> None:
    p.add_argument("-o", "--output", metavar="FORMAT", default="", help=help_text)


def _targets(p: Parser, help_text: str, nargs: str = "+") -> None:
    _completes(p.add_argument("targets", metavar="TARGET", nargs=nargs, help=help_text), "target")


def _selector(p: Parser) -> None:
    p.add_argument(
        "-l", "--selector", metavar="LABELS", default="", help="such as app=triage,zone in (a,b)"
    )


def _dry_run(p: Parser) -> None:
    p.add_argument("--dry-run", action="store_true", help="say what would happen; change nothing")


def _timeout(p: Parser, default: str) -> None:
    p.add_argument("--timeout", metavar="TIME", default=default, help=f"default {default}")


def _waiting(p: Parser) -> None:
    p.add_argument(
        "--wait",
        nargs="?",
        const="true",
        default="true",
        choices=("true", "false"),
        help="wait until it is gone (default true)",
    )


def _apply(p: Parser) -> None:
    _files(p)
    _dry_run(p)
    _output(p, "name, json or yaml")


def _get(p: Parser) -> None:
    _targets(p, "KIND[,KIND...], KIND NAME..., or KIND/NAME...; or concentration, or compliance")
    _output(p)
    _selector(p)
    p.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")
    p.add_argument("-w", "--watch", action="store_true", help="then show every change")
    p.add_argument("--no-headers", action="store_true", help="rows alone")


def _why(p: Parser) -> None:
    _targets(p, "workload/NAME", nargs="*")
    _files(p, required=False)
    _completes(
        p.add_argument(
            "--node", action="append", default=[], metavar="NAME", help="only this node"
        ),
        "node",
    )
    p.add_argument("--site", action="append", default=[], metavar="NAME", help="only its nodes")
    _output(p, "json or yaml")


def _plan(p: Parser) -> None:
    _files(p)
    _output(p, "json or yaml")


def _lose(p: Parser) -> None:
    p.add_argument(
        "losses",
        metavar="WHAT/NAME",
        nargs="+",
        help="region/, provider/, country/, law/, site/ or node/NAME; all at once",
    )
    _output(p, "json or yaml")


def _describe(p: Parser) -> None:
    _targets(p, "KIND, KIND NAME..., or KIND/NAME...")
    _selector(p)
    p.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")


def _delete(p: Parser) -> None:
    _targets(p, "KIND NAME..., or KIND/NAME...", nargs="*")
    _files(p, required=False)
    _waiting(p)
    _timeout(p, "5m")
    _dry_run(p)
    p.add_argument("--ignore-not-found", action="store_true", help="absent is as good as deleted")


def _one_target(p: Parser) -> None:
    action = p.add_argument("target", metavar="TARGET", help="replica/NAME, workload/NAME, or NAME")
    _completes(action, "target")
    _completes(p.add_argument("-c", "--container", default="", metavar="NAME"), "nothing")


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
    _output(p, "wide or json")


def _wait(p: Parser) -> None:
    _targets(p, "KIND NAME..., or KIND/NAME...")
    _selector(p)
    p.add_argument(
        "--for",
        dest="condition",
        required=True,
        metavar="WHAT",
        help="ready, running, delete, condition=TYPE[=STATUS] or jsonpath={PATH}[=VALUE]",
    )
    _timeout(p, "60s")


def _token_create(p: Parser) -> None:
    p.add_argument("--site", required=True, metavar="SITE", help="where the node will stand")
    p.add_argument("--node", default="", metavar="NAME", help="the only node that may use it")
    p.add_argument("--ttl", default="10m", metavar="TIME", help="at most and by default 10m")


def _nodes(p: Parser) -> None:
    _completes(p.add_argument("nodes", metavar="NODE", nargs="+", help="NAME or node/NAME"), "node")
    _dry_run(p)


def _drain(p: Parser) -> None:
    _nodes(p)
    _timeout(p, "10m")
    p.add_argument("--wait", nargs="?", const="true", default="true", choices=("true", "false"))


def _revoke(p: Parser) -> None:
    _targets(p, "node/NAME or operator/NAME")
    p.add_argument("--reason", default="", help="kept with the record and shown in events")
    p.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _label(p: Parser) -> None:
    _targets(p, "KIND/NAME..., then KEY=VALUE to set or KEY- to remove")
    p.add_argument("--overwrite", action="store_true", help="allow changing a label that is there")
    _dry_run(p)


def _taint(p: Parser) -> None:
    _targets(p, "NODE..., then KEY[=VALUE]:EFFECT to set or KEY[:EFFECT]- to remove")
    p.add_argument("--overwrite", action="store_true", help="allow changing a taint that is there")
    _dry_run(p)


def _explain(p: Parser) -> None:
    action = p.add_argument("path", nargs="?", default="", metavar="KIND[.FIELD...]")
    _completes(action, "kind")
    p.add_argument("--recursive", action="store_true", help="fields of fields too")


def _operator_create(p: Parser) -> None:
    p.add_argument("name", metavar="NAME")
    p.add_argument(
        "--role",
        action="append",
        required=True,
        metavar="ROLE",
        help="admin, operator:NAMESPACE or viewer:NAMESPACE; may be repeated",
    )
    p.add_argument("--ttl", default="90d", metavar="TIME", help="life of the certificate; 90d")
    p.add_argument("--out", default="", metavar="FILE", help="default NAME.polder.yaml")
    p.add_argument("--force", action="store_true", help="overwrite the file")


def _config_name(p: Parser) -> None:
    _completes(p.add_argument("name", metavar="NAME"), "context")


def _config_set_context(p: Parser) -> None:
    _config_name(p)
    p.add_argument("--cluster", default="", help="a cluster of this file")
    p.add_argument("--user", default="", help="a user of this file")


def _config_import(p: Parser) -> None:
    _completes(p.add_argument("file", metavar="FILE", help="or - for standard input"), "file")
    p.add_argument("--overwrite", action="store_true", help="replace entries of the same name")
    p.add_argument("--use", action="store_true", help="make its context the current one")


def _version(p: Parser) -> None:
    p.add_argument("--client", action="store_true", help="do not ask the orchestrator")
    _output(p, "json or yaml")


def _completion(p: Parser) -> None:
    p.add_argument("shell", choices=("bash", "zsh", "fish"))


def _complete(p: Parser) -> None:
    p.add_argument("what")


_CONFIG = (
    Verb("view", "show the configuration without secrets", _nothing, "config:view"),
    Verb("get-contexts", "list contexts", _nothing, "config:get_contexts"),
    Verb("current-context", "print the current context", _nothing, "config:current_context"),
    Verb("use-context", "make a context the current one", _config_name, "config:use_context"),
    Verb(
        "set-context",
        "create or change a context",
        _config_set_context,
        "config:set_context",
        example="config set-context ward --cluster eu --user ada -n umc-utrecht",
    ),
    Verb("delete-context", "forget a context", _config_name, "config:delete_context"),
    Verb(
        "set",
        "set the current context's --namespace",
        _nothing,
        "config:set_values",
        example="config set --namespace umc-utrecht",
    ),
    Verb(
        "import",
        "add the contexts of a file",
        _config_import,
        "config:import_file",
        example="config import ada.polder.yaml --use",
    ),
    Verb("path", "print where the configuration file is", _nothing, "config:show_path"),
)

VERBS = (
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
        _files,
        "diff",
        example="diff -f hello.yaml",
    ),
    Verb(
        "plan",
        "show what apply would place, move, stop and preempt; changes nothing",
        _plan,
        "plan",
        example="plan -f hello.yaml",
    ),
    Verb("get", "list resources, or show some", _get, "get", example="get nodes,workloads -o wide"),
    Verb(
        "describe",
        "tell everything about a resource",
        _describe,
        "describe",
        example="describe node/edge-1",
    ),
    Verb(
        "why",
        "tell why replicas are where they are, or nowhere, and what would help",
        _why,
        "why",
        example="why workload/hello --node edge-1",
    ),
    Verb(
        "simulate",
        "try out what cannot be tried",
        _nothing,
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
        "delete",
        "delete resources, and wait until they are gone",
        _delete,
        "delete",
        example="delete workload/hello --timeout 1m",
    ),
    Verb(
        "logs",
        "print what a replica's container writes",
        _logs,
        "logs",
        example="logs -f replica/hello-0 --tail 20",
    ),
    Verb(
        "exec",
        "run a command in a replica's container",
        _exec,
        "exec",
        example="exec -it replica/hello-0 -- sh",
    ),
    Verb(
        "events", "show what happened", _events, "events", example="events -w --for workload/hello"
    ),
    Verb(
        "wait",
        "wait for a condition; a resource may yet have to appear",
        _wait,
        "wait",
        example="wait workload/hello --for=ready --timeout 2m",
    ),
    Verb(
        "token",
        "make join tokens for nodes",
        _nothing,
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
        "revoke",
        "refuse a node's or operator's identity from now on",
        _revoke,
        "revoke",
        example="revoke node/edge-1 --reason stolen",
    ),
    Verb(
        "label",
        "set or remove labels",
        _label,
        "label:label",
        example="label node/edge-1 zone=ward-3 rack-",
    ),
    Verb(
        "taint",
        "set or remove taints of nodes",
        _taint,
        "label:taint",
        example="taint edge-1 maintenance=true:NoSchedule",
    ),
    Verb(
        "explain",
        "show the fields of a kind",
        _explain,
        "explain",
        example="explain workload.template.containers",
    ),
    Verb(
        "operator",
        "manage operators",
        _nothing,
        children=(
            Verb(
                "create",
                "issue a certificate and context",
                _operator_create,
                "operator:create",
                example="operator create ada --role operator:umc-utrecht",
            ),
        ),
    ),
    Verb("config", "see and change contexts", _nothing, children=_CONFIG),
    Verb("version", "show the versions of edgectl and orchestrator", _version, "version"),
    Verb(
        "completion",
        "print a completion script for a shell",
        _completion,
        "completion:run",
        example="completion bash > ~/.local/share/bash-completion/completions/edgectl",
    ),
    Verb("__complete", "", _complete, "completion:candidates", hidden=True),
)
