"""`edge-agent doctor`: look, conclude, tell. Called by `agent/main.py`; a process of its own."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from agent.config import AgentConfig
from agent.doctor import devices, network, standing, system
from agent.doctor.facts import Facts
from agent.doctor.finding import OK, Finding, exit_code
from agent.doctor.gather import gather
from agent.hardware import shelf
from agent.inventory import Box


def run(config: AgentConfig, *, as_json: bool, quiet: bool) -> int:
    """Returns the exit code: 0 well, 1 warnings, 2 what must be mended."""
    try:
        profile, complaints = shelf.own_profile()
    except shelf.NoProfiles as error:
        sys.stderr.write(f"edge-agent: {error}: the agent is not installed whole\n")
        return 2
    for complaint in complaints:
        sys.stderr.write(f"edge-agent: {complaint}\n")
    facts = gather(config, profile, Box(state_dir=config.state_dir))
    findings = diagnose(facts)
    code = exit_code(findings)
    shown = [finding for finding in findings if not quiet or finding.level != OK]
    if as_json:
        report = {
            "profile": profile.name,
            "exitCode": code,
            "findings": [asdict(finding) for finding in shown],
        }
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        sys.stdout.write(text(profile.title, shown))
    return code


def diagnose(facts: Facts) -> list[Finding]:
    """All findings, in the order in which things build on each other."""
    parts = (system, devices, network, standing)
    return [finding for part in parts for finding in part.findings(facts)]


def text(title: str, findings: Sequence[Finding]) -> str:
    """A line for each, and how to mend it below."""
    lines = [f"{'box':<9}{'profile':<15}{title}"]
    for finding in findings:
        lines.append(f"{finding.level:<9}{finding.check:<15}{finding.what}")
        if finding.fix:
            lines.append(f"{'':<9}{'':<15}fix: {finding.fix}")
    return "\n".join(lines) + "\n"
