"""The doctor and real firewalls: nft and iptables in a network namespace of their own."""

import json
import subprocess
from typing import Any

import pytest

from agent.doctor.ruleset import shut_chains

pytestmark = pytest.mark.firewall
CHAIN = """table inet filter {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state {{ established, related }} accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
    udp dport 68 accept
    tcp dport 22 accept
    {0}
  }}
}}
"""
VERDICTS = "tcp dport vmap { 22 : accept, 7445 : accept }"


def rules(script: str, stdin: str = "") -> list[dict[str, Any]]:
    """What `nft -j` says after the script, as the doctor asks it."""
    command = ["unshare", "--net", "sh", "-ec", f"ip link set lo up; {script}; nft -j list ruleset"]
    said = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout
    return [item for item in json.loads(said)["nftables"] if "metainfo" not in item]


@pytest.mark.parametrize(
    ("rule", "is_open"),
    [
        ("", False),
        ("tcp dport 7446 accept", False),
        ("tcp dport 7445 counter accept", True),
        ("ct state new tcp dport { 80, 7400-7500 } accept", True),
        ("meta l4proto { tcp, udp } th dport 7445 accept", True),
        ("ip saddr 10.0.0.0/8 accept", True),
        ('iifname "wg0" accept', True),
        (VERDICTS, True),
        (VERDICTS.replace("7445", "7446"), False),
        ("ct state vmap { established : accept, invalid : drop }", False),
        ("tcp sport 443 accept", False),
    ],
)
def test_nft(rule: str, is_open: bool) -> None:
    found = shut_chains(rules("nft -f -", CHAIN.format(rule)), 7445)
    assert found == ([] if is_open else ["inet filter input"])


@pytest.mark.parametrize(
    ("match", "is_open"),
    [
        ("-p tcp --dport 7445", True),
        ("-p tcp --dport 22", False),
        ("-p tcp -m multiport --dports 22,7445", True),
        ("-s 10.0.0.0/8", True),
        ("-i lo", False),
        ("-m conntrack --ctstate ESTABLISHED", False),
        ("-p tcp --dport 7445 -m conntrack --ctstate NEW", True),
    ],
)
def test_iptables(match: str, is_open: bool) -> None:
    script = f"iptables-nft -P INPUT DROP; iptables-nft -A INPUT {match} -j ACCEPT"
    found = shut_chains(rules(script), 7445)
    assert found == ([] if is_open else ["ip filter INPUT"])
