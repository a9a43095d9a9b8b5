"""The example of examples/sovereignty, as its README tells it, on two boxes that are simulated."""

import json
from pathlib import Path

from devcluster.installation import Installation
from tests.e2e.support import edgectl, eventually, get, replica

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sovereignty"


def apply(control: Installation, name: str) -> tuple[int, str, str]:
    done = edgectl(control, "apply", "-f", str(EXAMPLE / name))
    return done.returncode, done.stdout, done.stderr


def test_a_german_site_with_an_american_parent(control: Installation) -> None:
    assert apply(control, "1-facts.yaml")[0] == 0
    control.add_agent("de-box", site="de-fra-1", runtime="simulated")
    assert apply(control, "2-floor.yaml")[0] == 0
    code, _, err = apply(control, "5-looser.yaml")
    assert code == 1 and ":10: spec.sovereignty.residency: allows US" in err
    assert ":11: spec.sovereignty.seal.SOV-2: is 1, weaker" in err
    planned = edgectl(control, "plan", "-f", str(EXAMPLE / "3-workloads.yaml"))
    assert planned.returncode == 0 and "place 1 replica of clinic/triage" in planned.stdout
    assert edgectl(control, "get", "-n", "clinic", "workload/triage").returncode == 1
    assert apply(control, "3-workloads.yaml")[0] == 0
    eventually(
        lambda: get(control, "workload/pages", "-n", "clinic")["status"]["ready"] == 2, "run"
    )
    placed = get(control, "replica/triage-0", "-n", "clinic")
    assert placed["spec"]["node"] == "sim-1"
    why = edgectl(control, "why", "-n", "clinic", "workload/triage", "--node", "de-box").stdout
    assert "Big Cloud Inc. (US) holds 62 percent of the votes of Rhein Holding" in why
    assert "LawReaches: US-CLOUD-ACT reaches it" in why
    code, _, err = apply(control, "4-nowhere.yaml")
    assert code == 1 and "none of the 2 declared sites meets it" in err
    asked = edgectl(control, "why", "-f", str(EXAMPLE / "4-nowhere.yaml"))
    assert "1 more site if sovereignty.residency allowed NL" in asked.stdout
    lost = edgectl(control, "simulate", "lose", "law/US-CLOUD-ACT")
    assert lost.returncode == 0 and "1 of 2 nodes go dark (1 whole site)" in lost.stdout
    shares = edgectl(control, "get", "concentration", "-o", "json")
    tables = {table["by"]: table["rows"] for table in json.loads(shares.stdout)["tables"]}
    assert {row["name"] for row in tables["ownerCountry"]} == {"NL", "US"}


def test_a_certificate_ends_and_the_replica_runs_on(control: Installation) -> None:
    assert "3 of 3 replicas" in edgectl(control, "get", "compliance").stdout
    facts = (EXAMPLE / "1-facts.yaml").read_text().replace("2031-12-31", "2026-01-31")
    done = edgectl(control, "apply", "-f", "-", stdin=facts.encode())
    assert done.returncode == 0 and "1 replica will no longer comply" in done.stderr

    def reason() -> object:
        listed = edgectl(control, "get", "-n", "clinic", "replicas").stdout
        return "Running (NonCompliant)" in listed

    eventually(reason, "its agent reports it, by the facts of its plan")
    told = edgectl(control, "get", "compliance").stdout
    assert "2 of 3 replicas" in told and "CertificateExpired" in told
    again = edgectl(control, "apply", "-f", str(EXAMPLE / "1-facts.yaml"))
    assert again.returncode == 0
    eventually(lambda: not reason(), "it complies again")
    status = get(control, "replica/triage-0", "-n", "clinic")["status"]
    assert status["ready"] and status["containers"][0]["restarts"] == 0
    done = edgectl(control, "delete", "-f", str(EXAMPLE / "3-workloads.yaml"))
    assert done.returncode == 0 and not replica(control, "triage-0")


def test_wrong_questions_are_usage_errors(control: Installation) -> None:
    for words in (
        ("why",),
        ("why", "node/sim-1"),
        ("why", "workload/x", "-f", "y.yaml"),
        ("simulate", "lose", "planet/mars"),
        ("simulate", "lose", "DE"),
        ("get", "compliance", "-w"),
        ("get", "concentration", "-o", "jsonpath={.x}"),
    ):
        done = edgectl(control, *words)
        assert done.returncode == 2, (words, done.stderr)
        assert done.stderr and not done.stdout
    missing = edgectl(control, "why", "workload/nope")
    assert missing.returncode == 1 and "nope" in missing.stderr
