"""What a release keeps in Kubernetes: made once, never changed, refused when it does not fit."""

import argparse
import base64
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from orchestrator.config import ConfigError
from orchestrator.identity.authority import create_region, create_root, load_authority, region_home
from orchestrator.identity.etcd_authority import is_client, issue_etcd
from orchestrator.identity.pem import write_file
from orchestrator.kube.api import KubeRefused
from orchestrator.kube.command import add_kube
from orchestrator.kube.keeping import SCHEMAS, Keeper, Release

NOW = 1_790_000_000.0
RELEASE = Release("polder", "polder.example", "eu-west")
HOSTS = tuple(f"polder-etcd-{n}.polder-etcd.ns.svc.cluster.local" for n in range(3))
WITH_ETCD = Release("polder", "polder.example", "eu-west", store="etcd", etcd_hosts=HOSTS)
OWN_ETCD = Release("polder", "polder.example", "eu-west", store="etcd", etcd_secret="my-etcd")


class Cluster:
    """An API server's memory, as far as `Keeper` asks it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}

    def get(self, plural: str, name: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.objects.get((plural, name)))

    def create(self, plural: str, body: dict[str, Any]) -> bool:
        key = plural, body["metadata"]["name"]
        if key in self.objects:
            return False
        self.objects[key] = copy.deepcopy(body)
        return True

    def replace(self, plural: str, body: dict[str, Any]) -> None:
        self.objects[plural, body["metadata"]["name"]] = copy.deepcopy(body)

    def files(self, name: str) -> dict[str, bytes]:
        return {k: base64.b64decode(v) for k, v in self.objects["secrets", name]["data"].items()}

    @property
    def names(self) -> set[str]:
        return {name for plural, name in self.objects if plural == "secrets"}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def prepare(cluster: Cluster, release: Release = RELEASE, now: float = NOW) -> list[str]:
    keeper = Keeper(cluster, now)
    keeper.prepare(release)
    return keeper.told


def authority_in(cluster: Cluster, folder: Path, name: str = "polder-ca") -> Any:
    files = cluster.files(name)
    write_file(folder / "root.crt", files["root.crt"])
    for file in ("ca.crt", "ca.key"):
        write_file(region_home(folder, "eu-west") / file, files[file])
    return load_authority(folder, "eu-west")


def test_a_first_install_makes_a_ca_that_members_can_use(cluster: Cluster, tmp_path: Path) -> None:
    assert prepare(cluster) == ["Secret polder-root: made", "Secret polder-ca: made"]
    assert set(cluster.files("polder-ca")) == {"root.crt", "ca.crt", "ca.key"}, "no root.key"
    assert set(cluster.files("polder-root")) == {"root.crt", "root.key"}
    authority = authority_in(cluster, tmp_path)
    assert (authority.trust_domain, authority.region) == ("polder.example", "eu-west")
    assert cluster.objects["secrets", "polder-root"]["immutable"]


def test_an_upgrade_changes_nothing(cluster: Cluster) -> None:
    prepare(cluster, WITH_ETCD)
    before = copy.deepcopy(cluster.objects)
    told = prepare(cluster, WITH_ETCD, NOW + 86_400)
    assert cluster.objects == before
    assert all(line.endswith(": kept") for line in told)


def test_nothing_of_a_secret_is_told(cluster: Cluster) -> None:
    told = "\n".join(prepare(cluster, WITH_ETCD))
    for name in cluster.names:
        for data in cluster.files(name).values():
            assert data.decode().splitlines()[1] not in told


def test_a_root_that_was_taken_away_is_not_made_again(cluster: Cluster) -> None:
    prepare(cluster)
    del cluster.objects["secrets", "polder-root"]
    assert prepare(cluster) == ["Secret polder-ca: kept"]
    assert cluster.names == {"polder-ca"}


def test_a_regions_ca_is_renewed_by_deleting_it(cluster: Cluster, tmp_path: Path) -> None:
    prepare(cluster)
    before = authority_in(cluster, tmp_path / "before")
    del cluster.objects["secrets", "polder-ca"]
    prepare(cluster, now=NOW + 86_400)
    after = authority_in(cluster, tmp_path / "after")
    assert after.root == before.root
    assert after.intermediate != before.intermediate


def test_a_lost_ca_is_not_replaced_by_another_root(cluster: Cluster) -> None:
    prepare(cluster)
    Keeper(cluster, NOW).record("polder", "sqlite", "polder-ca")
    for name in list(cluster.names):
        del cluster.objects["secrets", name]
    with pytest.raises(KubeRefused, match="polder-ca is gone") as caught:
        prepare(cluster)
    assert "Restore" in caught.value.hint
    assert not cluster.names


def test_another_trust_domain_or_region_is_refused(cluster: Cluster) -> None:
    prepare(cluster)
    with pytest.raises(KubeRefused, match=r"trustDomain says other\.example"):
        prepare(cluster, Release("polder", "other.example", "eu-west"))
    with pytest.raises(KubeRefused, match="is of region eu-west, and region says eu-north"):
        prepare(cluster, Release("polder", "polder.example", "eu-north"))


def given_ca(cluster: Cluster, folder: Path, region: str = "eu-west") -> None:
    create_root(folder, "polder.example", NOW)
    create_region(folder, region, NOW)
    home = region_home(folder, region)
    files = {"root.crt": folder / "root.crt", "ca.crt": home / "ca.crt", "ca.key": home / "ca.key"}
    data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    cluster.create("secrets", {"metadata": {"name": "mine"}, "data": data})


def test_an_existing_secret_is_used_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    given_ca(cluster, tmp_path)
    mine = Release("polder", "polder.example", "eu-west", ca_secret="mine")
    assert prepare(cluster, mine) == ["Secret mine: used"]
    assert cluster.names == {"mine"}


def test_an_existing_secret_that_cannot_be_used_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    mine = Release("polder", "polder.example", "eu-west", ca_secret="mine")
    with pytest.raises(KubeRefused, match="there is no Secret mine"):
        prepare(cluster, mine)
    given_ca(cluster, tmp_path)
    stranger = Cluster()
    given_ca(stranger, tmp_path / "stranger")
    data = cluster.objects["secrets", "mine"]["data"]
    data["ca.key"] = stranger.objects["secrets", "mine"]["data"]["ca.key"]
    with pytest.raises(KubeRefused, match="Secret mine: "):
        prepare(cluster, mine)
    del data["ca.key"]
    with pytest.raises(KubeRefused, match=r"Secret mine lacks ca\.key"):
        prepare(cluster, mine)


def given_etcd(cluster: Cluster, folder: Path, name: str) -> None:
    made = issue_etcd(folder, "polder", (), NOW, client=True)
    files = {"ca.crt": made.ca, "tls.crt": made.certificate, "tls.key": made.key}
    data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    cluster.create("secrets", {"metadata": {"name": name}, "data": data})


def test_an_existing_secret_for_etcd_is_used_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    given_etcd(cluster, tmp_path, "my-etcd")
    before = cluster.objects["secrets", "my-etcd"]
    assert prepare(cluster, OWN_ETCD)[-1] == "Secret my-etcd: used"
    assert cluster.objects["secrets", "my-etcd"] == before
    assert cluster.names == {"polder-root", "polder-ca", "my-etcd"}


def test_an_existing_secret_for_etcd_that_cannot_be_used_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(KubeRefused, match=r"existingSecret: there is no Secret my-etcd") as caught:
        prepare(cluster, OWN_ETCD)
    assert "ca etcd" in caught.value.hint
    given_etcd(cluster, tmp_path / "one", "my-etcd")
    given_etcd(cluster, tmp_path / "other", "others")
    data = cluster.objects["secrets", "my-etcd"]["data"]
    data["tls.key"] = cluster.objects["secrets", "others"]["data"]["tls.key"]
    with pytest.raises(KubeRefused, match=r"Secret my-etcd: tls\.key does not belong to tls\.crt"):
        prepare(cluster, OWN_ETCD)
    data["tls.crt"] = base64.b64encode(b"a certificate").decode()
    with pytest.raises(KubeRefused, match=r"Secret my-etcd: tls\.crt holds no certificate"):
        prepare(cluster, OWN_ETCD)
    del data["tls.key"]
    with pytest.raises(KubeRefused, match=r"Secret my-etcd lacks tls\.key"):
        prepare(cluster, OWN_ETCD)


def test_etcd_gets_certificates_of_a_ca_of_its_own(cluster: Cluster) -> None:
    prepare(cluster, WITH_ETCD)
    server, client, ca = (
        x509.load_pem_x509_certificate(cluster.files(f"polder-etcd-{who}")[file])
        for who, file in (("server", "tls.crt"), ("client", "tls.crt"), ("ca", "ca.crt"))
    )
    server.verify_directly_issued_by(ca)
    client.verify_directly_issued_by(ca)
    assert is_client(client) and not is_client(server)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(HOSTS) < set(names.get_values_for_type(x509.DNSName))
    root = x509.load_pem_x509_certificate(cluster.files("polder-ca")["root.crt"])
    assert ca.issuer != root.subject


def test_a_certificate_of_etcd_is_renewed_from_the_same_ca(cluster: Cluster) -> None:
    prepare(cluster, WITH_ETCD)
    before = cluster.files("polder-etcd-server")
    del cluster.objects["secrets", "polder-etcd-server"]
    prepare(cluster, WITH_ETCD, NOW + 86_400)
    after = cluster.files("polder-etcd-server")
    assert after["ca.crt"] == before["ca.crt"] and after["tls.crt"] != before["tls.crt"]


def test_etcds_ca_that_is_gone_is_not_replaced(cluster: Cluster) -> None:
    prepare(cluster, WITH_ETCD)
    del cluster.objects["secrets", "polder-etcd-server"]
    del cluster.objects["secrets", "polder-etcd-ca"]
    with pytest.raises(KubeRefused, match="polder-etcd-ca is gone"):
        prepare(cluster, WITH_ETCD)


def test_members_of_etcd_are_not_changed_by_a_number(cluster: Cluster) -> None:
    prepare(cluster, WITH_ETCD)
    more = (*HOSTS, "polder-etcd-3.polder-etcd.ns.svc.cluster.local")
    with pytest.raises(KubeRefused, match=r"etcd\.replicas"):
        prepare(cluster, replace(WITH_ETCD, etcd_hosts=more))


def test_two_jobs_at_once_agree(cluster: Cluster, tmp_path: Path) -> None:
    """A retried job can overlap with the one that it replaces."""

    class Late(Cluster):
        """Another job makes each secret just before this one does."""

        def create(self, plural: str, body: dict[str, Any]) -> bool:
            name = body["metadata"]["name"]
            if name in faster.names:
                self.objects[plural, name] = faster.objects[plural, name]
            return super().create(plural, body)

    faster = cluster
    prepare(faster, WITH_ETCD)
    late = Late()
    prepare(late, WITH_ETCD)
    assert late.objects == faster.objects


@pytest.mark.parametrize("key", SCHEMAS)
def test_a_version_that_is_too_old_is_refused_before_anything_changes(
    cluster: Cluster, key: str
) -> None:
    prepare(cluster)
    Keeper(cluster, NOW).record("polder", "sqlite", "polder-ca")
    data = cluster.objects["configmaps", "polder-installation"]["data"]
    data |= {key: str(SCHEMAS[key] + 1), "version": "9.9.9"}
    before = copy.deepcopy(cluster.objects)
    with pytest.raises(KubeRefused, match=r"written by version 9\.9\.9") as caught:
        prepare(cluster, WITH_ETCD)
    assert "docs/helm.md" in caught.value.hint
    assert cluster.objects == before


def test_the_record_never_goes_back(cluster: Cluster) -> None:
    prepare(cluster)
    keeper = Keeper(cluster, NOW)
    keeper.record("polder", "sqlite", "polder-ca")
    cluster.objects["configmaps", "polder-installation"]["data"]["schema"] = "7"
    keeper.record("polder", "sqlite", "polder-ca")
    assert cluster.objects["configmaps", "polder-installation"]["data"]["schema"] == "7"


def test_there_is_no_way_back_from_etcd_to_sqlite(cluster: Cluster) -> None:
    """A member would take up what its volume had before the move, and nobody would be warned."""
    prepare(cluster)
    Keeper(cluster, NOW).record("polder", "sqlite", "polder-ca")
    prepare(cluster, WITH_ETCD)
    Keeper(cluster, NOW).record("polder", "etcd", "polder-ca")
    before = copy.deepcopy(cluster.objects)
    with pytest.raises(KubeRefused, match=r"is in etcd, and store\.type says sqlite") as caught:
        prepare(cluster)
    assert cluster.objects == before
    assert "nothing was moved to etcd yet" in caught.value.hint
    prepare(cluster, WITH_ETCD)
    cluster.objects["configmaps", "polder-installation"]["data"]["store"] = "sqlite"  # the hint's
    prepare(cluster)


def test_another_root_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """As it would come with a Secret for several regions that was made apart from the first."""
    prepare(cluster)
    Keeper(cluster, NOW).record("polder", "sqlite", "polder-ca")
    given_ca(cluster, tmp_path)
    mine = replace(RELEASE, ca_secret="mine")
    with pytest.raises(KubeRefused, match="Secret mine has another root than this installation"):
        prepare(cluster, mine)
    data = cluster.objects["secrets", "mine"]["data"]
    data |= cluster.objects["secrets", "polder-ca"]["data"]
    assert prepare(cluster, mine) == ["Secret mine: used"]


def test_settings_that_a_member_would_refuse_are_refused_before_anything_else() -> None:
    parser = argparse.ArgumentParser()
    add_kube(parser.add_subparsers())
    words = ["kube", "prepare", "--name=polder", "--trust-domain=polder.example", "--region=a"]
    options = parser.parse_args([*words, '--config=lost_after = "5s"\nsilent_after = "1m"\n'])
    with pytest.raises(ConfigError, match=r"^orchestrator\.toml: lost_after: must be longer than"):
        options.run(options)
