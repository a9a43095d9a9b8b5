"""The orchestrator's settings: what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from agent.connection_policy import renewal_due_at
from orchestrator.config import LEFT_OF_LIFE, ConfigError, load_config

ETCD = {
    "store": "etcd:10.0.0.1:2379,10.0.0.2:2379",
    "etcd_ca": "/etc/polder/etcd/ca.pem",
    "etcd_cert": "/etc/polder/etcd/client.pem",
    "etcd_key": "/etc/polder/etcd/client.key",
}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"store": "sqlite:polder.db"}, "store: 'polder.db' is a relative path"),
        ({"store": "redis:x"}, "store: 'redis:x' is neither sqlite:PATH nor etcd:HOST:PORT"),
        ({"store": "etcd:a:2379"}, "etcd_ca: etcd is spoken to with certificates only"),
        ({**ETCD, "etcd_key": ""}, "etcd_key: etcd is spoken to with certificates only"),
        ({**ETCD, "store": "etcd:a"}, "store: endpoint 'a' of etcd is not host:port"),
        ({**ETCD, "store": "etcd:https://a:1"}, "is not host:port"),
        ({**ETCD, "etcd_prefix": "polder"}, "must start with /"),
        ({"etcd_cert": "x"}, "etcd_cert: is for a store at etcd"),
        ({"location": "52.1"}, "location: '52.1' is not LATITUDE,LONGITUDE"),
        ({"location": "5.1 east,52"}, "is not LATITUDE,LONGITUDE"),
        ({"location": "91,5"}, "is not on Earth"),
        ({"location": "nan,5"}, "is not on Earth"),
        ({"peer_listen": "7445"}, "peer_listen: '7445' is not an address"),
        ({"peer_listen": "0.0.0.0:7443"}, "peer_listen: is an address of its own"),
        ({"advertise_peer": "example"}, "advertise_peer: 'example' is not an address"),
        ({"share_port": True}, "share_port: is for members that share a store"),
        ({**ETCD, "share_port": True}, "share_port: needs peer_listen"),
        (
            {**ETCD, "share_port": True, "peer_listen": "h:1", "listen": "h:0"},
            "listen: a port that is shared must be named",
        ),
    ],
)
def test_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, values)
    assert words in str(caught.value)


def test_the_file_is_named_in_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    path.write_text('store = "etcd:a:1"\n')
    with pytest.raises(ConfigError, match=r"o\.toml: etcd_ca: "):
        load_config(path, {})


def test_variables_and_flags_are_text() -> None:
    variables = {"POLDER_SHARE_PORT": "true", "POLDER_PEER_LISTEN": "10.0.0.9:7445"}
    config = load_config(None, variables, {**ETCD, "hold_stops_above": "7", "accept_rate": "12.5"})
    assert (config.share_port, config.hold_stops_above, config.accept_rate) == (True, 7, 12.5)
    with pytest.raises(ConfigError, match="share_port: expected true or false"):
        load_config(None, {"POLDER_SHARE_PORT": "yes"})
    with pytest.raises(ConfigError, match="hold_stops_above: expected a whole number"):
        load_config(None, {}, {"hold_stops_above": "many"})


def test_what_follows_from_settings() -> None:
    alone = load_config(None, {}, {"data_dir": "/d", "advertise": ["o.example:1"]})
    assert alone.store_address == "sqlite:/d/polder.db"
    assert alone.peer_endpoint == "o.example:1"
    assert alone.coordinates is None
    assert not alone.shares_store
    member = load_config(
        None,
        {},
        {**ETCD, "peer_listen": "10.0.0.9:7445", "location": "52.09, 5.12", "etcd_prefix": "/a"},
    )
    assert member.shares_store
    assert member.peer_endpoint == "10.0.0.9:7445"
    assert member.coordinates == (52.09, 5.12)
    assert member.etcd_access.key == Path("/etc/polder/etcd/client.key")
    assert member.etcd_access.prefix == "/a"
    named = load_config(None, {}, {"peer_listen": "0.0.0.0:7445", "advertise_peer": "p.example:9"})
    assert named.peer_endpoint == "p.example:9"


def test_certificates_of_nodes_outlive_the_promised_time_alone() -> None:
    """Whenever the node was cut off: it renews its own at a third of its life."""
    assert 1.0 - renewal_due_at(0.0, 1.0, dice=1.0) >= LEFT_OF_LIFE
    assert load_config(None, {}, {}).concerns == ()
    (short,) = load_config(None, {}, {"autonomy": "8d"}).concerns
    assert "node_certificate_life" in short and "join again" in short
