"""The argument parser and the dispatch to a verb's module. Called by `edgectl.__main__`.

Only argparse is imported here. A verb is a `Verb` row in `edgectl.options` and a function in
`edgectl.verbs` that takes the `Invocation` and returns the exit code.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from edgectl.arguments import Verb, add_common
from edgectl.options import VERBS

_DESCRIPTION = "Operate a Polder installation: apply workloads, see what runs where, manage nodes."
_EPILOG = """\
Try:
  edgectl get nodes,workloads        what there is
  edgectl apply -f hello.yaml        create or change what a file describes
  edgectl explain workload.template  the fields of a manifest
  edgectl VERB --help                one verb's options
"""


class _Parser(argparse.ArgumentParser):
    """Options may stand between positional arguments, as in `get nodes -o wide edge-1`."""

    _intermixing = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        grouping = self._subparsers is not None
        if grouping or self._intermixing:
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"argument (VERB|COMMAND): invalid choice: '(.*?)' ", message)
        if unknown:
            message = self._unknown(unknown.group(2))
        else:
            self.print_usage(sys.stderr)
        print(f"error: {message}", file=sys.stderr)
        print(f"  see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def _unknown(self, word: str) -> str:
        from difflib import get_close_matches

        known = [name for a in self._actions for name in a.choices or () if name[:1] != "_"]
        near = get_close_matches(word, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{word!r} is not something that {self.prog} does; {hint}"


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; also what completion scripts are made from."""
    parser = _Parser(
        prog="edgectl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_common(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for verb in VERBS:
        _add_verb(verbs, verb)
    return parser


def _add_verb(verbs: "argparse._SubParsersAction[_Parser]", verb: Verb) -> None:
    description = verb.help[:1].upper() + verb.help[1:] + "."
    parser = verbs.add_parser(
        verb.name,
        description=description,
        epilog=f"Example:\n  edgectl {verb.example}" if verb.example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **({} if verb.hidden else {"help": verb.help}),  # type: ignore[arg-type]
    )
    add_common(parser)
    verb.add(parser)
    if verb.children:
        children = parser.add_subparsers(dest="subverb", metavar="COMMAND", parser_class=_Parser)
        children.required = True
        for child in verb.children:
            _add_verb(children, child)
    else:
        parser.set_defaults(run=verb.run, at_site=verb.at_site)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What `--` separates from the options is left alone as the command of exec."""
    parser = build_parser()
    argv = ["--wait=true" if word == "--wait" else word for word in argv]  # else it eats a target
    if "--" in argv:
        at = argv.index("--")
        if "exec" in argv[:at]:
            options = parser.parse_args(argv[:at])
            if getattr(options, "verb", None) == "exec":
                options.command = [*options.command, *argv[at + 1 :]]
                return options
    options = parser.parse_args(argv)
    if options.verb is None:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    return options


def _at_site(options: argparse.Namespace) -> str:
    """What runs instead of the verb's usual function. Raises UsageError."""
    if options.at_site:
        chosen: str = options.at_site
        return chosen
    from edgectl.errors import UsageError

    known = ", ".join(sorted(verb.name for verb in VERBS if verb.at_site))
    raise UsageError(
        f"{options.verb} needs an orchestrator; the nodes of a site cannot do it",
        f"with --site-endpoint there are {known}",
        "without it edgectl asks the orchestrator of the context",
    )


def run(argv: Sequence[str]) -> int:
    """Parse and run. Returns the exit code; raises CliError."""
    options = parse(argv)
    if hasattr(options, "site_endpoint"):
        options.run = _at_site(options)
    elif hasattr(options, "break_glass_token"):
        from edgectl.errors import UsageError

        raise UsageError(
            "a break-glass token is for the nodes of a site: name one with --site-endpoint",
            "orchestrators take certificates alone",
        )
    module_name, _, function_name = options.run.partition(":")
    from edgectl.invocation import Invocation

    module = importlib.import_module(f"edgectl.verbs.{module_name}")
    function: Callable[[Invocation], int] = getattr(module, function_name or "run")
    with Invocation(options) as invocation:
        return function(invocation)
