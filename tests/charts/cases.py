"""The values that the chart is rendered with: each a way in which somebody runs it."""

from typing import Any

from tests.charts.helm import MONITORING

THREE = {"replicas": 3, "store": {"type": "etcd"}}
EXTERNAL = {
    "type": "etcd",
    "etcd": {
        "endpoints": ["etcd.eu-west.example:2379", "etcd.eu-north.example:2379"],
        "existingSecret": "etcd-client",
    },
}

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "etcd": THREE,
    "region": {
        "region": "eu-west",
        "trustDomain": "polder.example",
        "location": "52.37,4.90",
        "replicas": 2,
        "store": EXTERNAL,
        "ca": {"existingSecret": "eu-west-ca"},
        "advertise": {
            "agents": ["192.0.2.10:7443"],
            "join": ["192.0.2.10:7444"],
            "members": ["192.0.2.11:7443", "192.0.2.12:7443"],
        },
        "service": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
        "memberService": {"enabled": True},
        "networkPolicy": {
            "members": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
            "etcd": [{"ipBlock": {"cidr": "198.51.100.0/24"}}],
            "apiServer": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
        },
        "persistence": {"enabled": False},
    },
    "metrics": {
        "metrics": {
            "enabled": True,
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        },
        "networkPolicy": {
            "metrics": [
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "metrics"}}}
            ],
            "clients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
        },
    },
    "placed": {
        **THREE,
        "nodeSelector": {"pool": "control"},
        "tolerations": [{"key": "control", "operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "topologySpread": {"whenUnsatisfiable": "DoNotSchedule"},
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"note": "x"},
        "settings": {"lost_after": "1m30s", "log_format": "json", "hold_stops_above": 20},
        "persistence": {"storageClass": "fast", "accessMode": "ReadWriteOncePod"},
        "security": {"runAsUser": None, "fsGroup": None},
        "service": {"type": "NodePort", "nodePort": 30443, "joinNodePort": 30444},
    },
    "open": {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "topologySpread": {"enabled": False},
        "fullnameOverride": "control",
        "serviceAccount": {"name": "mine"},
        "listenHost": "[::]",
    },
}
APIS = (MONITORING,)
GOLDEN = ("default", "etcd", "region")
