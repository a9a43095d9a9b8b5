"""The resource model: what operators write, what the wire and the store carry, what agents run.

Used by edgectl (to check a file before it is sent and to explain fields), by the operator API (to
check it again), by the scheduler and by the agent (to read the template in its plan).
"""

from polder.manifest.decode import InvalidManifest, canonical, decode, digest
from polder.manifest.document import API_VERSION, Manifest, ManifestMetadata, decode_document
from polder.manifest.kinds import (
    KINDS,
    ConfigSpec,
    KindInfo,
    NamespaceSpec,
    NodeSpec,
    ProviderSpec,
    SecretSpec,
    SiteSpec,
    Taint,
    WorkloadSpec,
    kind_named,
)
from polder.manifest.placement import Placement, Spread, Toleration
from polder.manifest.pod import (
    Container,
    EnvVar,
    PodTemplate,
    Port,
    Probe,
    ResourceRequest,
)
from polder.manifest.schema import Violation

__all__ = [
    "API_VERSION",
    "KINDS",
    "ConfigSpec",
    "Container",
    "EnvVar",
    "InvalidManifest",
    "KindInfo",
    "Manifest",
    "ManifestMetadata",
    "NamespaceSpec",
    "NodeSpec",
    "Placement",
    "PodTemplate",
    "Port",
    "Probe",
    "ProviderSpec",
    "ResourceRequest",
    "SecretSpec",
    "SiteSpec",
    "Spread",
    "Taint",
    "Toleration",
    "Violation",
    "WorkloadSpec",
    "canonical",
    "decode",
    "decode_document",
    "digest",
    "kind_named",
]
