"""Which Secrets a node's plan carries, as a digest of their versions.

The leader stores it with the placement, so that a changed Secret makes a new generation of exactly
the plans that carry it. The gateway composes the values from the same names.
"""

import json
from collections.abc import Iterable
from hashlib import sha256

from orchestrator.records import AssignmentRecord
from orchestrator.scheduling.snapshot import Snapshot
from polder.manifest import PodTemplate


def secret_names(template: PodTemplate) -> tuple[str, ...]:
    """The Secrets that a template names, sorted."""
    named = {
        variable.secret.name
        for container in template.containers
        for variable in container.env
        if variable.secret is not None
    }
    return tuple(sorted(named | set(template.image_pull_secrets)))


def secrets_digest(assignments: Iterable[AssignmentRecord], snapshot: Snapshot) -> str:
    """Hex; empty when the assignments name no Secret. A missing Secret has a version too."""
    versions = {
        (a.namespace, name): snapshot.secrets.get((a.namespace, name), "")
        for a in assignments
        if (template := snapshot.templates.get((a.workload_uid, a.revision))) is not None
        for name in template.secrets
    }
    if not versions:
        return ""
    return sha256(json.dumps(sorted(versions.items())).encode()).hexdigest()[:32]
