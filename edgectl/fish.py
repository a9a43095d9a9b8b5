"""A completion script for fish, which shtab does not write. Called by `edgectl completion`."""

import argparse
from collections.abc import Iterator, Mapping


def script(parser: argparse.ArgumentParser, dynamic: Mapping[str, str]) -> str:
    """`dynamic` maps an argument's `completes` to what `edgectl __complete` is asked for."""
    lines = ["# fish completion for edgectl", "complete -c edgectl -f"]
    lines.extend(_level(parser, (), dynamic))
    return "\n".join(lines) + "\n"


def _level(
    parser: argparse.ArgumentParser, verbs: tuple[str, ...], dynamic: Mapping[str, str]
) -> Iterator[str]:
    condition = _condition(verbs)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {a.dest: a.help or "" for a in action._choices_actions}
            others = " ".join(helps)
            for name in helps:
                if verbs:
                    not_yet = f"{condition}; and not __fish_seen_subcommand_from {others}"
                else:
                    not_yet = "__fish_use_subcommand"
                yield f"complete -c edgectl -n '{not_yet}' -a {name} -d {_quoted(helps[name])}"
                yield from _level(action.choices[name], (*verbs, name), dynamic)
        else:
            yield from _argument(action, condition, dynamic)


def _argument(action: argparse.Action, condition: str, dynamic: Mapping[str, str]) -> Iterator[str]:
    if action.help == argparse.SUPPRESS:
        return
    what = getattr(action, "completes", "")
    words = [f"complete -c edgectl -n '{condition}'"]
    for option in action.option_strings:
        words.append(f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}")
    if action.option_strings and action.nargs != 0:
        words.append("-r")
    if what in dynamic:
        words.append(f"-a '(edgectl __complete {dynamic[what]} 2>/dev/null)'")
    elif what == "file":
        words.append("-F")
    elif action.choices is not None:
        words.append(f"-a {_quoted(' '.join(map(str, action.choices)))}")
    elif not action.option_strings:
        return
    if action.help:
        words.append(f"-d {_quoted(action.help)}")
    yield " ".join(words)


def _condition(verbs: tuple[str, ...]) -> str:
    if not verbs:
        return "true"
    return "; and ".join(f"__fish_seen_subcommand_from {verb}" for verb in verbs)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
