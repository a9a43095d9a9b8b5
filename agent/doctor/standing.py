"""The runtime, and the agent's own: identity, files, process. Pure: facts in, findings out."""

from collections.abc import Iterator

from agent import connection_policy
from agent.doctor.facts import Facts
from agent.doctor.finding import FAILURE, NOTE, OK, WARNING, Finding
from polder.manifest.quantity import format_timestamp


def findings(facts: Facts) -> Iterator[Finding]:
    """All of this module."""
    yield from runtime(facts)
    yield from state_dir(facts)
    yield from certificates(facts)
    yield from machine_id(facts)
    yield from agent(facts)
    yield from upgrades(facts)


def runtime(facts: Facts) -> Iterator[Finding]:
    found = facts.runtime
    if found.error:
        yield Finding(
            "runtime",
            FAILURE,
            f"no container runtime answers at {found.socket}: {found.error}",
            "`apt install containerd && systemctl enable --now containerd`, or runtime_socket in "
            "/etc/polder/agent.toml; `disabled_plugins` of containerd must not name cri",
        )
    elif not found.runtime_ready:
        yield Finding(
            "runtime",
            FAILURE,
            f"{found.version} is not ready: {found.message}",
            "look at `journalctl -u containerd`",
        )
    elif not found.network_ready:
        yield Finding(
            "runtime",
            FAILURE,
            f"{found.version} has no network for pods: {found.message}",
            "mend what is said of cni, then `systemctl restart containerd`",
        )
    else:
        yield Finding("runtime", OK, f"{found.version} at {found.socket}")


def certificates(facts: Facts) -> Iterator[Finding]:
    found = facts.standing
    for path in found.open_paths:
        yield Finding(
            "certificates",
            FAILURE,
            f"{path} can be read by others of this box",
            f"`chmod go= {path}`; if others were on the box, revoke the node and join anew",
        )
    yield from _token(facts)
    if not found.joined:
        if found.token is not None and not found.error:
            return  # told of
        yield Finding(
            "certificates",
            FAILURE if found.error else NOTE,
            found.error or "this box has not joined",
            "`edge-agent join --token-file FILE`, with a token of `edgectl token create`",
        )
        return
    trouble = connection_policy.certificate_trouble(
        found.not_before, found.not_after, facts.clock.now
    )
    if trouble is not None:
        if facts.clock.now < found.not_before:
            return  # the clock is wrong, and is told of
        over = facts.clock.now > found.not_after
        yield Finding(
            "certificates",
            FAILURE if over else WARNING,
            f"{found.node}: {trouble.message}",
            "see that the clock is right; if it is, `edge-agent join --force` with a new token"
            if over
            else "see that an orchestrator can be reached: it is renewed by itself then",
        )
    else:
        days = (found.not_after - facts.clock.now) / 86_400
        yield Finding("certificates", OK, f"{found.node}: valid for {days:.1f} more days")


def _token(facts: Facts) -> Iterator[Finding]:
    """One that waits: nobody sits at this box to see that it does not work."""
    token, standing = facts.standing.token, facts.standing
    if token is None:
        return
    anew = f"put a new one there (`edgectl token create`), or `rm {token.path}`"
    if standing.joined:
        yield Finding(
            "certificates",
            WARNING,
            f"this box has joined as {standing.node}, and there is a token in {token.path} still",
            f"`rm {token.path}`; to join anew, `edge-agent join --force --token-file` with it",
        )
    elif token.error:
        yield Finding("certificates", FAILURE, f"{token.path}: {token.error}", anew)
    elif 0 < token.expires_at < facts.clock.now:
        when = format_timestamp(token.expires_at)
        yield Finding(
            "certificates",
            FAILURE,
            f"this box has not joined, and its token in {token.path} expired at {when}",
            f"see that the clock is right; if it is, {anew}",
        )
    else:
        yield Finding(
            "certificates",
            WARNING,
            f"this box has not joined yet; edge-join.service tries with the token in {token.path}",
            "`journalctl -u edge-join` says what keeps it; `systemctl start edge-join` tries now",
        )


def state_dir(facts: Facts) -> Iterator[Finding]:
    place = facts.standing.forbidden_state_dir
    if place:
        yield Finding(
            "state-dir",
            FAILURE,
            f"state_dir is {place}, where edge-join.service and edge-switch.service may not write",
            "take state_dir out of /etc/polder/agent.toml and mount the disk at "
            f"/var/lib/polder-agent; or give both units a drop-in with ReadWritePaths={place}",
        )


def machine_id(facts: Facts) -> Iterator[Finding]:
    if facts.standing.machine_id:
        yield Finding("machine-id", OK, "the box has a name of its own")
    else:
        yield Finding(
            "machine-id",
            WARNING,
            "no machine id and no serial number: a copy of this disk would not be noticed",
            "`systemd-machine-id-setup`",
        )


def agent(facts: Facts) -> Iterator[Finding]:
    found = facts.standing
    if not found.agent_pid and not found.joined:
        return  # it waits for the join, and leaves its lock to that
    if not found.agent_pid:
        yield Finding(
            "agent", NOTE, "the agent does not run", "`systemctl enable --now edge-agent`"
        )
        return
    yield Finding("agent", OK, f"runs, pid {found.agent_pid}")
    if found.switch_answers is False:
        yield Finding(
            "switch",
            WARNING,
            "the dead-man's switch does not answer: no exclusive replica starts here",
            "`systemctl enable --now edge-switch`",
        )
    elif found.switch_answers:
        yield Finding("switch", OK, "the dead-man's switch answers")


def upgrades(facts: Facts) -> Iterator[Finding]:
    found = facts.standing
    if found.upgrade_watched is False:
        yield Finding(
            "upgrades",
            WARNING,
            "nobody carries out upgrades of the fleet here: edge-upgrade.path is not active",
            "`systemctl enable --now edge-upgrade.path`",
        )
    elif found.upgrade_watched:
        yield Finding("upgrades", OK, "upgrades of the fleet are carried out here")
    if found.upgrade_trouble:
        yield Finding(
            "upgrades",
            NOTE,
            f"the last upgrade failed: {found.upgrade_trouble}",
            "look at `journalctl -u edge-upgrade -u edge-agent`, then `edgectl agent resume`",
        )
