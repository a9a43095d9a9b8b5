"""What devcluster computes without touching the machine: images, configuration, rules."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from devcluster import network, preflight
from devcluster.containerd import Paths, PrivateContainerd, render_config
from devcluster.image import ImageSpec, build, is_static, write_archive
from devcluster.preflight import Missing
from tests.conftest import left_out

TINY = ImageSpec("x.local/tiny:1", "arm64", ("/run",), files={"/run": b"#!/bin/sh\n"})


def test_images_are_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_archive(tmp_path / name, [TINY])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_archive_is_an_oci_layout(tmp_path: Path) -> None:
    write_archive(tmp_path / "image.tar", [TINY])
    with tarfile.open(tmp_path / "image.tar") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "x.local/tiny:1"}
    assert entry["platform"] == {"os": "linux", "architecture": "arm64"}
    manifest = json.loads(files["blobs/" + entry["digest"].replace(":", "/")])
    config = json.loads(files["blobs/" + manifest["config"]["digest"].replace(":", "/")])
    assert config["architecture"] == "arm64" and config["config"]["Entrypoint"] == ["/run"]
    layer = files["blobs/" + manifest["layers"][0]["digest"].replace(":", "/")]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getmember("run").mode == 0o755
        assert tar.getmember("tmp").mode == 0o1777


def test_architecture_changes_only_the_config() -> None:
    one, other = build(TINY), build(ImageSpec("y:1", "s390x", ("/run",), files=TINY.files))
    assert one.layer.digest == other.layer.digest
    assert one.config.digest != other.config.digest


def test_scripts_are_not_static_programs(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert not is_static(tmp_path / "script")


def test_config_restricts_oom_scores_only_where_it_must() -> None:
    paths = Paths(Path("/d"), Path("/r"))
    assert "restrict_oom_score_adj = true" in render_config(paths, Path("/c"), restrict_oom=True)
    production = render_config(paths, Path("/c"), restrict_oom=False)
    assert "restrict_oom_score_adj = false" in production
    assert 'address = "/r/c.sock"' in production and 'root = "/d/root"' in production


def test_capability_bits_are_read(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001fffeffffff\n")
    assert not preflight.has_capability(preflight.CAP_SYS_RESOURCE, status)
    assert preflight.has_capability(preflight.CAP_SYS_ADMIN, status)


def test_instances_have_names_of_their_own(tmp_path: Path) -> None:
    one, other = PrivateContainerd(tmp_path / "one"), PrivateContainerd(tmp_path / "other")
    assert one.name != other.name and len(one.bridge) == 15
    assert one.name == PrivateContainerd(tmp_path / "one").name
    deep = PrivateContainerd(tmp_path / ("deep" * 60))
    assert len(deep.socket.removeprefix("unix://")) < 107


def test_subnet_avoids_every_route() -> None:
    routes = (
        "default via 192.0.2.1 dev eth0\n"
        "10.213.0.0/24 dev x proto kernel\n"
        "local 10.213.1.1 dev y table local\n"
        "broadcast 10.213.2.255 dev z table local\n"
    )
    assert network.free_subnet(routes) == "10.213.3.0/24"
    with pytest.raises(OSError, match="no free"):
        network.free_subnet("10.0.0.0/8 via 192.0.2.1 dev tun0\n")


SAVED_NAT = """\
*nat
:CNI-0123456789abcdef01234567 - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
-A POSTROUTING -s 10.213.0.2/32 -m comment --comment "name: \\"polder-x\\" id: \\"1\\"" \
-j CNI-0123456789abcdef01234567
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"polder-x\\" id: \\"1\\"" \
-m multiport --dports 8080 -j CNI-DN-0123456789abcdef01234
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \\"other\\" id: \\"2\\"" \
-j CNI-DN-fffffffffffffffffffff
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 8080 -j DNAT --to 10.213.0.2:8080
COMMIT
"""


def test_only_the_networks_own_rules_are_removed() -> None:
    commands = network.removal_commands(SAVED_NAT, "polder-x", "10.213.0.0/24")
    deleted = [c[1] for c in commands if c[0] == "-D"]
    assert deleted == ["POSTROUTING", "CNI-HOSTPORT-DNAT"]
    assert [c for c in commands if c[0] in ("-F", "-X")] == [
        ["-F", "CNI-0123456789abcdef01234567"],
        ["-X", "CNI-0123456789abcdef01234567"],
        ["-F", "CNI-DN-0123456789abcdef01234"],
        ["-X", "CNI-DN-0123456789abcdef01234"],
    ]
    assert "172.17.0.0/16" not in str(commands) and "other" not in str(commands)


def test_skip_reason_names_the_packages() -> None:
    lacking = [Missing("root rights", ""), Missing("ctr", "containerd"), Missing("runc", "runc")]
    expected = "needs root rights, ctr, runc (apt-get install containerd runc)"
    assert preflight.reason(lacking) == expected
    assert preflight.reason(lacking[:1]) == "needs root rights"


def test_left_out_tests_are_counted_by_reason() -> None:
    def skipped(nodeid: str, reason: str) -> pytest.TestReport:
        where = ("x.py", 1, f"Skipped: {reason}")
        return pytest.TestReport(nodeid, ("x.py", 1, ""), {}, "skipped", where, "setup")

    reports = [skipped("t/a.py::x", "needs root"), skipped("t/a.py::y", "needs root")]
    assert left_out([*reports, skipped("t/b.py::z", "no IPv6")]) == [
        "left out 2 tests: needs root [t/a.py]",
        "left out 1 test: no IPv6 [t/b.py]",
    ]
