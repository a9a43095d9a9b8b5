"""CNI, ports, orchestrators, firewall and MTU. Pure: facts in, findings out."""

from collections.abc import Iterator

from agent.doctor.facts import Facts
from agent.doctor.finding import FAILURE, NOTE, OK, PREPARE, WARNING, Finding
from agent.doctor.ruleset import shut_chains

MTU_MIN = 1280  # of IPv6
MTU_USUAL = 1500


def findings(facts: Facts) -> Iterator[Finding]:
    """All of this module."""
    yield from cni(facts)
    yield from ports(facts)
    yield from orchestrators(facts)
    yield from firewall(facts)
    yield from mtu(facts)


def cni(facts: Facts) -> Iterator[Finding]:
    found = facts.cni
    if not found.networks:
        yield Finding(
            "cni",
            FAILURE,
            "no network for pods in /etc/cni/net.d",
            f"run `{PREPARE}`, which writes one, or put your own .conflist there",
        )
        return
    first = min(found.networks, key=lambda network: network.file)  # the one that runtimes take
    if first.error:
        yield Finding(
            "cni", FAILURE, f"{first.file}: {first.error}", "mend the file, or write it anew"
        )
        return
    lacking = [name for name in first.plugins if name not in found.plugins]
    if lacking:
        yield Finding(
            "cni",
            FAILURE,
            f"{first.file} wants plugins that are not there: {', '.join(lacking)}",
            "`apt install containernetworking-plugins`",
        )
    elif found.iptables is False and first.wants_iptables:
        yield Finding(
            "cni",
            FAILURE,
            f"{first.file} has plugins that call iptables, and there is none: pods get no network",
            "`apt install iptables`",
        )
    else:
        yield Finding("cni", OK, f"network {first.name} of {', '.join(first.plugins)}")


def ports(facts: Facts) -> Iterator[Finding]:
    yield _port(
        facts,
        facts.site_port,
        "site_listen",
        "the nodes of the site",
        "this box takes nothing over from its neighbours",
    )
    yield _port(
        facts,
        facts.local_port,
        "local_listen",
        "operators at the site",
        "nobody reaches this box when no orchestrator is there",
    )


def _port(facts: Facts, port: int, setting: str, callers: str, without: str) -> Finding:
    """One that the agent listens at; 0: it is told not to."""
    if not port:
        return Finding(
            "ports",
            NOTE,
            f"{setting} is empty: {without}",
            f"take {setting} out of /etc/polder/agent.toml, or give it an address and a port",
        )
    if port in facts.listening and not facts.standing.agent_pid:
        return Finding(
            "ports",
            FAILURE,
            f"another program listens at TCP port {port}, which is this agent's for {callers}",
            f"end it (`ss -ltnp sport = :{port}`), or give {setting} another port",
        )
    return Finding("ports", OK, f"TCP port {port} is there for {callers}")


def orchestrators(facts: Facts) -> Iterator[Finding]:
    silent = [reach for reach in facts.reaches if reach.error]
    if not facts.reaches:
        return  # it has not joined: nobody said where they are
    said = "; ".join(f"{reach.endpoint}: {reach.error}" for reach in silent)
    if len(silent) == len(facts.reaches):
        yield Finding(
            "orchestrators",
            FAILURE,
            f"none can be reached ({said})",
            "look at the uplink, at DNS, and at a firewall on the way; containers run on meanwhile",
        )
    elif silent:
        yield Finding(
            "orchestrators",
            WARNING,
            f"{len(silent)} of {len(facts.reaches)} cannot be reached ({said})",
            "one is enough to work; if it lasts, look at the firewall on the way",
        )
    else:
        yield Finding("orchestrators", OK, f"all {len(facts.reaches)} can be reached")


def firewall(facts: Facts) -> Iterator[Finding]:
    if not facts.nft_there:
        yield Finding(
            "firewall",
            NOTE,
            "the rules of a firewall, if there is one, were not looked at: nft is not there",
            "`apt install nftables`, and ask again",
        )
        return
    if facts.firewall is None:
        yield Finding("firewall", OK, "no nftables rules to be seen")
        return
    open_to_all = True
    for port, who in (
        (facts.site_port, "the other nodes of the site"),
        (facts.local_port, "operators at the site"),
    ):
        closed = shut_chains(facts.firewall, port) if port else []
        if closed:
            open_to_all = False
            yield Finding(
                "firewall",
                WARNING,
                f"{', '.join(closed)} drops what no rule accepts, and none accepts TCP port "
                f"{port}: {who} seem to be shut out",
                f"`nft add rule {closed[0]} tcp dport {port} accept`, and so in /etc/nftables.conf",
            )
    if open_to_all:
        yield Finding("firewall", OK, "nothing keeps this agent's ports shut")


def mtu(facts: Facts) -> Iterator[Finding]:
    uplinks = [link for link in facts.links if link.is_uplink]
    if not uplinks:
        yield Finding(
            "mtu",
            WARNING,
            "no default route: nothing outside of the local network can be reached",
            "look at `ip route`; DHCP or the network's configuration should give one",
        )
        return
    troubles = []
    for link in uplinks:
        if link.mtu < MTU_MIN:
            troubles.append(
                Finding(
                    "mtu",
                    WARNING,
                    f"{link.name} has an MTU of {link.mtu}, less than IPv6 demands",
                    f"`ip link set {link.name} mtu {MTU_USUAL}` if the network takes that",
                )
            )
    smallest = min(link.mtu for link in uplinks)
    pods = min(facts.cni.networks, key=lambda network: network.file, default=None)
    if pods is not None and not pods.error and (pods.mtu or MTU_USUAL) > smallest:
        troubles.append(
            Finding(
                "mtu",
                WARNING,
                f"pods have an MTU of {pods.mtu or MTU_USUAL}, the uplink {smallest}: large "
                "packets may vanish",
                f'"mtu": {smallest} in {pods.file}, and new pods',
            )
        )
    narrow = [reach for reach in facts.reaches if 0 < reach.path_mtu < smallest]
    if narrow:
        least = min(reach.path_mtu for reach in narrow)
        troubles.append(
            Finding(
                "mtu",
                NOTE,
                f"the way to {narrow[0].endpoint} takes packets of {least} bytes only",
                f"a tunnel lies on the way; `ip link set {uplinks[0].name} mtu {least}` spares the "
                "kernel finding it out",
            )
        )
    yield from troubles
    if not troubles:
        yield Finding("mtu", OK, ", ".join(f"{link.name} {link.mtu}" for link in uplinks))
