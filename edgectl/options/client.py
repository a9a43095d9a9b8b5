"""What concerns operators and edgectl itself: contexts, completion. See `__init__`."""

from edgectl.arguments import (
    Parser,
    Verb,
    completes,
    nothing,
    output,
)


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
    completes(p.add_argument("name", metavar="NAME"), "context")


def _config_set_context(p: Parser) -> None:
    _config_name(p)
    p.add_argument("--cluster", default="", help="a cluster of this file")
    p.add_argument("--user", default="", help="a user of this file")


def _config_import(p: Parser) -> None:
    completes(p.add_argument("file", metavar="FILE", help="or - for standard input"), "file")
    p.add_argument("--overwrite", action="store_true", help="replace entries of the same name")
    p.add_argument("--use", action="store_true", help="make its context the current one")


def _version(p: Parser) -> None:
    p.add_argument("--client", action="store_true", help="do not ask the orchestrator")
    output(p, "json or yaml")


def _completion(p: Parser) -> None:
    p.add_argument("shell", choices=("bash", "zsh", "fish"))


def _complete(p: Parser) -> None:
    p.add_argument("what")


_CONFIG = (
    Verb("view", "show the configuration without secrets", nothing, "config:view"),
    Verb("get-contexts", "list contexts", nothing, "config:get_contexts"),
    Verb("current-context", "print the current context", nothing, "config:current_context"),
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
        nothing,
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
    Verb("path", "print where the configuration file is", nothing, "config:show_path"),
)


CLIENT = (
    Verb(
        "operator",
        "manage operators",
        nothing,
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
    Verb("config", "see and change contexts", nothing, children=_CONFIG),
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
