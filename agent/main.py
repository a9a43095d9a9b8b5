"""The command line `edge-agent`: run, join, status, doctor, volume, upgrade, profile, tune, ...

Called by `agent/__main__.py`. Exit codes: 0 done (or joined already), 1 it did not work, 2 usage or
settings. Of `doctor`: 0 all well, 1 warnings, 2 what must be mended. Of `tune --check` and
`join --check`: 3 it would change something.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agent import config as settings
from polder import __version__

OK, FAILED, USAGE, WOULD_CHANGE = 0, 1, 2, 3
SWITCH_PATIENCE_S = 120.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent", description="Runs containers on this box as Polder's orchestrators say."
    )
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="run|join|status|doctor|volume|upgrade|profile|tune|switch|version",
    )

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument(
            "--config", type=Path, metavar="FILE", help="default: /etc/polder/agent.toml"
        )
        added.add_argument("--state-dir", metavar="DIR", help="default: /var/lib/polder-agent")
        return added

    run = verb("run", "Run the agent in the foreground, as systemd does.")
    run.add_argument(
        "--log-dir", metavar="DIR", help="container logs; default: /var/log/polder/pods"
    )
    run.add_argument("--runtime-socket", metavar="PATH", help="CRI socket of containerd or CRI-O")
    run.add_argument("--cgroup-parent", metavar="NAME", help="cgroup below which pods go")
    run.add_argument("--log-level", metavar="LEVEL", help=", ".join(settings.LOG_LEVELS))
    run.add_argument("--log-format", metavar="FORMAT", help=", ".join(settings.LOG_FORMATS))
    run.add_argument(
        "--runtime", choices=("cri", "simulated"), default="cri", help=argparse.SUPPRESS
    )
    join = verb("join", "Give this box its identity, with a token of `edgectl token create`.")
    token = join.add_mutually_exclusive_group(required=True)
    token.add_argument(
        "--token", metavar="TOKEN", help="seen by other users of the box: prefer a file"
    )
    token.add_argument("--token-file", metavar="FILE", help="`-` reads stdin")
    join.add_argument(
        "--node", default="", metavar="NAME", help="default: the token's, or the host name"
    )
    join.add_argument("--force", action="store_true", help="replace an identity that is there")
    join.add_argument(
        "--check", action="store_true", help="change nothing and use no token; 3: it would join"
    )
    status = verb("status", "Show who this box is and how its agent does.")
    status.add_argument("-o", "--output", choices=("text", "json"), default="text")
    doctor = verb("doctor", "Check whether this box can do its work, and say how to mend it.")
    doctor.add_argument("-o", "--output", choices=("text", "json"), default="text")
    doctor.add_argument("-q", "--quiet", action="store_true", help="only what is not well")
    volume = verb("volume", "Local data of replicas on this box: nothing else ever deletes it.")
    volume.add_argument("action", choices=("list", "delete"))
    volume.add_argument("name", nargs="?", default="", metavar="NAMESPACE/REPLICA/VOLUME")
    upgrade = verb("upgrade", "Upgrades of this agent that orchestrators order.")
    upgrade.add_argument("action", choices=("status", "apply"), help="`apply` is for systemd")
    _hardware_verbs(verbs)
    switch = verb("switch", "Run the dead-man's switch of this box in the foreground.")
    switch.add_argument(
        "--wait",
        action="store_true",
        help="run none: wait until nothing is armed with the one that runs, at most two minutes",
    )
    verbs.add_parser("version", help="Print the version.")
    return parser


def _hardware_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "Show what is known of this class of boxes."
    profile = verbs.add_parser("profile", help=text, description=text)
    profile.add_argument("name", nargs="?", default="", help="default: that of this box")
    profile.add_argument("--list", action="store_true", dest="every", help="all, a line each")
    profile.add_argument("-o", "--output", choices=("text", "json"), default="text")
    text = "Set watchdog, journal and writes as the box's profile recommends; prints what changed."
    tune = verbs.add_parser("tune", help=text, description=text)
    tune.add_argument("--check", action="store_true", help="change nothing; 3: it would")
    tune.add_argument("--undo", action="store_true", help="remove all that it wrote")
    tune.add_argument("--profile", default="", metavar="NAME", help="default: that of this box")
    tune.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="of an image, not of this box"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _do(options)
    except PermissionError as error:
        if os.geteuid() == 0:  # then it is no matter of rights, and the advice would be wrong
            raise
        return _fail(f"{error.filename or options.verb}: permission denied: run it as root")


def _do(options: argparse.Namespace) -> int:
    if options.verb == "version":
        sys.stdout.write(f"edge-agent {__version__}\n")
        return OK
    if options.verb in ("profile", "tune"):
        return _hardware(options)
    flags = {
        key: getattr(options, key)
        for key in (
            "state_dir",
            "log_dir",
            "runtime_socket",
            "cgroup_parent",
            "log_level",
            "log_format",
        )
        if getattr(options, key, None) is not None
    }
    profile, kept_back = _own_profile() if options.verb == "run" else ("", None)
    try:
        config = settings.load(options.config, kept_back=kept_back, **flags)
    except settings.InvalidConfig as error:
        return _fail(str(error), USAGE)
    if options.verb == "run":
        return _run(config, options.runtime, profile)
    if options.verb == "doctor":
        if os.geteuid() != 0:  # not a warning: what only root may see would be said to be well
            return _fail("doctor: run it as root", USAGE)
        from agent.doctor import command

        return command.run(config, as_json=options.output == "json", quiet=options.quiet)
    if options.verb == "upgrade":
        from agent.upgrade import command as upgrading

        applies = options.action == "apply"
        return upgrading.apply(config) if applies else upgrading.status(config)
    if options.verb == "switch":
        return _wait_for_switch(config) if options.wait else _switch(config)
    if options.verb == "join":
        return _join(config, options)
    if options.verb == "volume":
        return _volume(config, options)
    return _status(config, as_json=options.output == "json")


def _fail(message: str, code: int = FAILED) -> int:
    sys.stderr.write(f"edge-agent: {message}\n")
    return code


# --- run ----------------------------------------------------------------------------------------


def _own_profile() -> tuple[str, settings.Reserved | None]:
    """Name, and what is kept back for the system. Found out here: the agent reads no TOML."""
    from agent.hardware import shelf
    from agent.hardware.profile import GENERIC

    try:
        profile, complaints = shelf.own_profile()
    except shelf.NoProfiles as error:
        _fail(str(error))
        return "", None
    for complaint in complaints:
        _fail(complaint)
    if profile.name == GENERIC:
        return profile.name, None
    reserve = profile.reserve
    return profile.name, settings.reserved(reserve.cpu, reserve.memory, reserve.disk)


def _hardware(options: argparse.Namespace) -> int:
    from agent.hardware import tune_command

    if options.verb == "profile":
        as_json = options.output == "json"
        return tune_command.show(options.name, every=options.every, as_json=as_json)
    return tune_command.tune(
        options.root, check=options.check, undo=options.undo, name=options.profile
    )


def _run(config: settings.AgentConfig, runtime: str, profile: str) -> int:
    from agent import lean

    plain = settings.to_plain(config)
    try:
        lean.start({"config": plain, "runtime": runtime, "profile": profile})
    except OSError as error:
        return _fail(f"the agent cannot be started: {error}")


def _switch(config: settings.AgentConfig) -> int:
    """Becomes it: what read the settings takes no memory then."""
    from agent.site import switch_client

    try:
        command = switch_client.command(*switch_client.places(config.state_dir))
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        return _fail(f"the switch cannot be started: {error}")


def _wait_for_switch(config: settings.AgentConfig) -> int:
    from agent.site import switch_ask

    if switch_ask.wait_until_idle(config.state_dir, SWITCH_PATIENCE_S):
        return OK
    return _fail("an exclusive replica still has a deadline ahead: is an agent running?")


# --- join ---------------------------------------------------------------------------------------


def _join(config: settings.AgentConfig, options: argparse.Namespace) -> int:
    from agent import join as joining
    from agent.identity_store import IdentityStore
    from agent.inventory import Box
    from agent.notify import Locked, StateLock
    from polder import tokens

    try:
        token = tokens.parse(_token_text(options))
        store = IdentityStore(config.state_dir)
        done = None if options.force else joining.already_joined(store, token, options.node)
        if done is None and options.check:
            name = joining.node_to_be(token, options.node, time.time())
            sys.stdout.write(f"{name} would join at site {token.site}\n")
            return WOULD_CHANGE
        if done is None:
            lock = StateLock(config.state_dir)
            try:
                if first := joining.is_first(store):
                    # Before it: an agent that waits begins as soon as there is an identity.
                    joining.begin_memory(config.state_dir)
                box = Box(state_dir=config.state_dir)
                done = asyncio.run(
                    joining.join(store, token, node=options.node, version=__version__, box=box)
                )
                if not first:  # not before: as what it was until now it may have voted
                    joining.begin_memory(config.state_dir)
            finally:
                lock.release()
    except Locked as error:
        return _fail(f"{error}: stop it first")
    except (tokens.InvalidToken, joining.JoinFailed, OSError) as error:
        return _fail(str(error))
    identity = done.identity.id
    how = "had already joined" if done.already else "joined"
    sys.stdout.write(f"{identity.node} {how} {identity.trust_domain} at site {identity.site}\n")
    if done.already:
        sys.stderr.write(
            "the token was not used; if this node was revoked or deleted meanwhile, stop the agent "
            "and join with --force\n"
        )
    return OK


def _token_text(options: argparse.Namespace) -> str:
    if options.token is not None:
        return str(options.token)
    if options.token_file == "-":  # noqa: S105 - a file name
        return sys.stdin.read(16_384)
    with Path(options.token_file).open(encoding="utf-8", errors="replace") as file:
        return file.read(16_384)


# --- volume -------------------------------------------------------------------------------------


def _volume(config: settings.AgentConfig, options: argparse.Namespace) -> int:
    from agent import volume_command

    if (options.action == "delete") != bool(options.name):
        return _fail("usage: edge-agent volume list | delete NAMESPACE/REPLICA/VOLUME", USAGE)
    try:
        if options.action == "list":
            sys.stdout.write(volume_command.table(config.state_dir, time.time()))
        else:
            volume_command.delete(config.state_dir, options.name)
            sys.stdout.write(f"{options.name} deleted\n")
    except (volume_command.VolumeRefused, OSError) as error:
        return _fail(str(error))
    return OK


# --- status -------------------------------------------------------------------------------------


def _status(config: settings.AgentConfig, *, as_json: bool) -> int:
    from agent import status_file
    from agent.identity_store import IdentityFailure, IdentityStore
    from agent.notify import holder_of

    facts: dict[str, object] = {"state_dir": str(config.state_dir), "joined": False}
    code = OK
    try:
        identity = IdentityStore(config.state_dir).load()
        facts |= {
            "joined": True,
            "node": identity.id.node,
            "site": identity.id.site,
            "trust_domain": identity.id.trust_domain,
            "certificate_serial": identity.serial,
            "certificate_not_after": identity.not_after,
            "endpoints": list(identity.endpoints),
        }
    except (IdentityFailure, OSError) as error:
        facts["error"] = str(error)
        code = FAILED
    pid = holder_of(config.state_dir)
    facts["pid"] = pid
    session = status_file.read(config.state_dir)
    if session and not pid:
        session["connected"] = False
    facts["session"] = session
    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{key:<13}{value}\n" for key, value in _status_lines(facts)))
    return code


def _status_lines(facts: dict[str, object]) -> list[tuple[str, str]]:
    now = time.time()
    if not facts["joined"]:
        lines = [("joined", f"no: {facts['error']}")]
    else:
        left = float(str(facts["certificate_not_after"])) - now
        ends = f"ends in {_age(left)}" if left > 0 else f"ended {_age(-left)} ago"
        lines = [
            ("node", str(facts["node"])),
            ("site", str(facts["site"])),
            ("installation", str(facts["trust_domain"])),
            ("certificate", f"{facts['certificate_serial']}, {ends}"),
        ]
    lines.append(("agent", f"runs, pid {facts['pid']}" if facts["pid"] else "does not run"))
    session = facts["session"]
    if isinstance(session, dict) and session:
        if session.get("connected"):
            since = _age(now - session["since"])
            text = f"with {session['member']} at {session['endpoint']} for {since}"
            if session.get("member_cut_off"):
                text += "; it is itself cut off from its store"
            lines.append(("session", text))
        else:
            contact = session.get("last_contact")
            last = f"last contact {_age(now - contact)} ago" if contact else "no contact yet"
            lines.append(("session", f"none; {last}"))
            if session.get("last_error"):
                lines.append(("last error", str(session["last_error"])))
        lines.append(("plan", f"generation {session.get('plan_generation', 0)}"))
        written = float(session.get("written_at") or now)
        told = "" if facts["pid"] else f" when the agent last said so, {_age(now - written)} ago"
        lines.append(("replicas", f"{session.get('replicas_running', 0)} running{told}"))
        peers = session.get("peers", {})
        if peers:
            heard = ", ".join(name if well else f"{name} (silent)" for name, well in peers.items())
            lines.append(("peers", f"{heard}{told}"))
        for one in session.get("standbys", ()):
            able = "able" if one["able"] else f"unable: {one['reason']}"
            lines.append(("standby for", f"{one['replica']}, {able}"))
    return lines


def _age(seconds: float) -> str:
    from polder.manifest.quantity import format_duration

    return format_duration(seconds)
