"""What the tables of verbs are made of: a verb's row, and the options that several share.

The tables are in `options/`; argparse alone is imported, so that help is instant.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

Parser = argparse.ArgumentParser


@dataclass(frozen=True)
class Verb:
    """`run` is `module:function` under `edgectl.verbs`; with --site-endpoint `at_site` is run, and
    where that is empty the verb refused. A verb with children only groups them."""

    name: str
    help: str
    add: Callable[[Parser], None]
    run: str = ""
    example: str = ""
    children: tuple["Verb", ...] = ()
    hidden: bool = False
    at_site: str = ""


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
    group.add_argument(
        "--site-endpoint",
        metavar="HOST[:PORT]",
        action="append",
        default=absent,
        help="ask the nodes of a site themselves, through this one; may be repeated",
    )
    group.add_argument(
        "--break-glass-token",
        metavar="FILE",
        default=absent,
        help="enter the site by the token in this file (- for standard input)",
    )
    group.add_argument("--debug", action="store_true", default=absent, help=argparse.SUPPRESS)


def nothing(_: Parser) -> None:
    """For a verb without options of its own."""


def completes(action: argparse.Action, what: str) -> None:
    """Names what completion scripts offer for an argument (`edgectl.verbs.completion`)."""
    action.completes = what  # type: ignore[attr-defined]


def files(p: Parser, *, required: bool = True) -> None:
    action = p.add_argument(
        "-f",
        "--filename",
        metavar="FILE",
        action="append",
        default=[],
        required=required,
        help="manifest file, directory, or - for standard input; may be repeated",
    )
    completes(action, "file")
    p.add_argument("-R", "--recursive", action="store_true", help="descend into directories")


def output(p: Parser, help_text: str = "wide, json, yaml, name or jsonpath=TEMPLATE") -> None:
    p.add_argument("-o", "--output", metavar="FORMAT", default="", help=help_text)


def targets(p: Parser, help_text: str, nargs: str = "+") -> None:
    completes(p.add_argument("targets", metavar="TARGET", nargs=nargs, help=help_text), "target")


def selector(p: Parser) -> None:
    p.add_argument(
        "-l", "--selector", metavar="LABELS", default="", help="such as app=triage,zone in (a,b)"
    )


def dry_run(p: Parser) -> None:
    p.add_argument("--dry-run", action="store_true", help="say what would happen; change nothing")


def timeout(p: Parser, default: str) -> None:
    p.add_argument("--timeout", metavar="TIME", default=default, help=f"default {default}")


def waiting(p: Parser) -> None:
    p.add_argument(
        "--wait",
        nargs="?",
        const="true",
        default="true",
        choices=("true", "false"),
        help="wait until it is gone (default true)",
    )
