"""The key space. Every key that the orchestrator writes is built here and nowhere else."""

NO_NAMESPACE = "_"

SPECS = "/specs/"
REVISIONS = "/revisions/"
PLACEMENTS = "/placements/"
IDENTITIES = "/identities/"
TOKENS = "/tokens/"
NODE_STATUS = "/nodestatus/"
EVENTS = "/events/"
ROLLOUTS = "/rollouts/"
JOBS = "/jobs/"
FREEZES = "/freezes/"
HOLDS = "/holds/"
DRILLS = "/drills/"
FENCES = "/fences/"
DELETED = "/deleted/"
OVERRIDES = "/overrides/"
IMAGES = "/images/"
RELEASES = "/releases/"
UPGRADES = "/upgrades/"
AGENT_VERSIONS = "/agentversions/"
KEPT = (
    ROLLOUTS,
    JOBS,
    FREEZES,
    HOLDS,
    DRILLS,
    FENCES,
    DELETED,
    OVERRIDES,
    IMAGES,
    RELEASES,
    UPGRADES,
    AGENT_VERSIONS,
)
"""Records whose form is the business of the domain module that decides on them."""
MEMBERS = "/members/"
PRESENT = "/present/"
LEADER = "/leader"
FLOOR = "/floor"
"""The version that all members have reached: who is older stays out. See `domain/skew.py`."""
INSTALLATION = "/installation"
"""Schema version and trust domain, written once."""
MARK = "/mark"
"""Written by the etcd adapter alone, so that watches move on; see `etcd.progress`."""
REQUESTS = "/requests/"
"""What operators' requests came to, for who asks again; on leases. See `settling`."""
MACHINES = "/machines/"
"""Which node joined last with a machine id: two that join at once collide here."""
PACKAGES = "/packages/"
"""The bytes of packages, in parts. In nobody's mirror: they are read when a box asks."""
MIGRATION = "/migration"
"""In a Store to which an installation is being moved: whose. See `migrate`."""


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


def machine(digest: str) -> str:
    return f"{MACHINES}{digest}"


def node_status(node: str) -> str:
    return f"{NODE_STATUS}{node}"


def event(namespace: str, identifier: str) -> str:
    return f"{EVENTS}{namespace or NO_NAMESPACE}/{identifier}"


def rollout(workload_uid: str) -> str:
    """How far a workload's newest template has come."""
    return f"{ROLLOUTS}{workload_uid}"


def job(workload_uid: str) -> str:
    """What of a job is done; of a schedule, what was started."""
    return f"{JOBS}{workload_uid}"


def freeze(namespace: str) -> str:
    """An operator's freeze of one namespace; empty: of everything."""
    return f"{FREEZES}{namespace or NO_NAMESPACE}"


def hold(identifier: str) -> str:
    """A change that waits for an operator, and the approval."""
    return f"{HOLDS}{identifier}"


def deleted(workload_uid: str) -> str:
    """That a workload was deleted of which a site that is cut off may run a replica."""
    return f"{DELETED}{workload_uid}"


def fence(workload_uid: str, replica: str) -> str:
    """An operator's word that stays of a replica run no more."""
    return f"{FENCES}{workload_uid}/{replica}"


def override(site: str, workload_uid: str, replica: str, field: str) -> str:
    """What operators of a site decided of a replica, or (both empty) of the whole site."""
    return f"{overrides_of(site)}{workload_uid or '_'}/{replica or '_'}/{field}"


def images(workload_uid: str, revision: int) -> str:
    """For which architectures a revision has no image, as nodes found out."""
    return f"{IMAGES}{workload_uid}/{revision:010d}"


def overrides_of(site: str) -> str:
    """The beginning of the keys of all that operators of a site decided."""
    return f"{OVERRIDES}{site}/"


def member(name: str) -> str:
    """Where a member is: stays while the member is away."""
    return f"{MEMBERS}{name}"


def present(name: str) -> str:
    """That a member is there: hangs on its lease."""
    return f"{PRESENT}{name}"


def request(identifier: str, step: str) -> str:
    return f"{REQUESTS}{identifier}/{step}"


def drill(region: str) -> str:
    """A rehearsed loss of a region, under way or reported."""
    return f"{DRILLS}{region}"


def release(version: str) -> str:
    """A signed release of the agent, and which of its packages are here."""
    return f"{RELEASES}{version}"


def package_part(sha256: str, number: int) -> str:
    """Zero-padded, so that keys order as numbers do."""
    return f"{packages_of(sha256)}{number:06d}"


def packages_of(sha256: str) -> str:
    """The beginning of the keys of all parts of a package."""
    return f"{PACKAGES}{sha256}/"


def upgrade(number: int) -> str:
    """An upgrade of the fleet's agents; the next one has the next number."""
    return f"{UPGRADES}{number:010d}"


def agent_version(node: str) -> str:
    """That a box was told to become an upgrade's version."""
    return f"{AGENT_VERSIONS}{node}"
