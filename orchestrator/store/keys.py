"""The key space. Every key that the orchestrator writes is built here and nowhere else."""

NO_NAMESPACE = "_"

SPECS = "/specs/"
REVISIONS = "/revisions/"
PLACEMENTS = "/placements/"
IDENTITIES = "/identities/"
TOKENS = "/tokens/"
NODE_STATUS = "/nodestatus/"
EVENTS = "/events/"
LEADER = "/leader"
INSTALLATION = "/installation"
"""Schema version and trust domain, written once."""


def spec(kind: str, namespace: str, name: str) -> str:
    """A resource as its operator wrote it."""
    return f"{SPECS}{kind}/{namespace or NO_NAMESPACE}/{name}"


def spec_prefix(kind: str, namespace: str = "") -> str:
    return f"{SPECS}{kind}/{namespace}/" if namespace else f"{SPECS}{kind}/"


def revision(workload_uid: str, number: int) -> str:
    """One immutable template of a workload; zero-padded so that keys order as numbers do."""
    return f"{REVISIONS}{workload_uid}/{number:010d}"


def placement(node: str) -> str:
    """What the leader decided for a node."""
    return f"{PLACEMENTS}{node}"


def identity(kind: str, name: str) -> str:
    """Certificates that count for `node`, `operator` or `orchestrator` identities."""
    return f"{IDENTITIES}{kind}/{name}"


def token(secret_digest: str) -> str:
    return f"{TOKENS}{secret_digest}"


def node_status(node: str) -> str:
    return f"{NODE_STATUS}{node}"


def event(namespace: str, identifier: str) -> str:
    return f"{EVENTS}{namespace or NO_NAMESPACE}/{identifier}"
