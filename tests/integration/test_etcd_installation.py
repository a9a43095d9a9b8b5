"""Members on an etcd: made at the first start, checked at every later one, waited for when away."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator import founding
from orchestrator.installation import WrongInstallation
from orchestrator.server import Orchestrator
from orchestrator.store import keys
from orchestrator.store.etcd.adapter import EtcdStore, open_etcd
from orchestrator.store.port import (
    Compare,
    Delete,
    Op,
    Put,
    StoreUnavailable,
    StoreUnusable,
    TxnResult,
)
from polder.v1 import operator_pb2
from tests.integration.etcd_server import EtcdCluster
from tests.integration.members_rig import etcd_settings, forget_installations, make_ca
from tests.integration.orchestrator_rig import config_for, ref, running, until

pytestmark = pytest.mark.etcd


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    made = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_ca(tmp_path_factory.mktemp("ca"))


def at_etcd(cluster: EtcdCluster, prefix: str, ca: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a member."""
    return {**etcd_settings(cluster, prefix), "ca_dir": str(ca), **changes}


async def test_members_that_are_first_together_make_one_installation(
    cluster: EtcdCluster, tmp_path: Path
) -> None:
    own = make_ca(tmp_path / "ca")  # its own, so that it may be first once more
    there = f"/{tmp_path.name}"
    members = [
        Orchestrator(config_for(tmp_path / name, **at_etcd(cluster, there, own, member=name)))
        for name in ("a", "b", "c", "d")
    ]
    await asyncio.gather(*(member.start() for member in members))
    try:
        found = [member.parts.cache.resource("Namespace", "", "default") for member in members]
        assert all(one is not None and one == found[0] for one in found)
        assert any((tmp_path / name / "data" / "admin.yaml").exists() for name in "abcd")
    finally:
        await asyncio.gather(*(member.stop() for member in members))


async def test_an_operator_of_one_member_is_known_to_the_other(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    first = running(tmp_path / "a", **at_etcd(cluster, "/two", ca, member="a"))
    second = running(tmp_path / "b", **at_etcd(cluster, "/two", ca, member="b", region="north"))
    async with first as a, second as b:
        await a.site("ams-1")
        admin = a.admin_credentials()
        request = operator_pb2.GetRequest(ref=ref("Site", "ams-1"))
        await b.orchestrator.parts.cache.wait_for(a.orchestrator.parts.cache.revision)
        assert (await b.operators(admin).Get(request)).resource


async def test_the_first_admin_learns_of_later_members(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    first = running(tmp_path / "a", **at_etcd(cluster, "/learns", ca, member="a"))
    second = running(tmp_path / "b", **at_etcd(cluster, "/learns", ca, member="b", region="north"))
    async with first as a, second as b:
        path = a.config.data_path / "admin.yaml"
        wanted = [a.config.listen, b.config.listen]
        await until(lambda: _endpoints(path) == wanted, "both are in it")
        assert path.stat().st_mode & 0o777 == 0o600


def _endpoints(path: Path) -> list[str]:
    found: list[str] = json.loads(path.read_text())["clusters"][0]["cluster"]["endpoints"]
    return found


async def test_the_root_is_never_made_by_a_start(cluster: EtcdCluster, tmp_path: Path) -> None:
    config = config_for(tmp_path, **at_etcd(cluster, "/noroot", tmp_path / "ca"))
    with pytest.raises(WrongInstallation, match="one root") as caught:
        await Orchestrator(config).start()
    assert "ca init" in caught.value.hint
    assert not (tmp_path / "ca").exists()


async def test_a_lost_etcd_is_not_begun_anew(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path, **at_etcd(cluster, "/lost", ca))
    async with running(tmp_path, **at_etcd(cluster, "/lost", ca)):
        assert (tmp_path / "data" / "admin.yaml").exists()
    empty = config_for(tmp_path, **at_etcd(cluster, "/lost2", ca))
    with pytest.raises(WrongInstallation, match="holds no installation") as caught:
        await Orchestrator(empty).start()
    assert "snapshot" in caught.value.hint
    again = Orchestrator(config)
    await again.start()
    await again.stop()


async def test_an_installation_that_is_being_moved_is_left_alone(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    store = await open_etcd(cluster.settings("/moving"))
    await store.txn([], [Put(keys.MIGRATION, b"x")])
    await store.close()
    config = config_for(tmp_path, **at_etcd(cluster, "/moving", ca))
    with pytest.raises(WrongInstallation, match="being moved"):
        await Orchestrator(config).start()


async def test_an_admin_whose_making_was_not_heard_of_is_made_again(
    cluster: EtcdCluster, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the admin would be known to the Store, and nobody would have the key."""
    real = EtcdStore.txn
    lost: list[TxnResult] = []

    async def txn(self: EtcdStore, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        result = await real(self, compares, ops)
        if not lost and any(op.key == keys.identity("operator", "admin") for op in ops):
            lost.append(result)
            raise StoreUnavailable("the answer was lost")
        return result

    monkeypatch.setattr(EtcdStore, "txn", txn)
    async with running(tmp_path, **at_etcd(cluster, "/unheard", ca)) as rig:
        assert lost
        assert await rig.admin().WhoAmI(operator_pb2.WhoAmIRequest())


async def test_init_does_not_wait_for_etcd(ca: Path, tmp_path: Path) -> None:
    dead = EtcdCluster(tmp_path / "dead")
    config = config_for(tmp_path, **at_etcd(dead, "/x", ca))
    with pytest.raises(StoreUnavailable):
        await Orchestrator(config).prepare()


# ---- one installation of a CA ----


async def test_a_mistyped_prefix_founds_no_second_installation(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    settings = at_etcd(cluster, "/right", ca)
    typo = {**settings, "member": "b", "region": "north", "etcd_prefix": "/rihgt"}
    async with running(tmp_path / "a", **settings):
        with pytest.raises(WrongInstallation, match="under /right, and etcd_prefix is") as caught:
            await Orchestrator(config_for(tmp_path / "b", **typo)).start()
        assert 'etcd_prefix = "/right"' in caught.value.hint
    # Nor while nobody runs, and nothing was written there.
    with pytest.raises(WrongInstallation):
        await Orchestrator(config_for(tmp_path / "b", **typo)).start()
    store = await open_etcd(cluster.settings("/rihgt"))
    try:
        assert not (await store.range("/")).entries
    finally:
        await store.close()


async def test_what_was_deleted_is_in_nobodys_way(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    settings = at_etcd(cluster, "/gone", ca)
    async with running(tmp_path / "a", **settings):
        pass
    store = await open_etcd(cluster.settings("/gone"))
    await store.txn([], [Delete(keys.INSTALLATION)])
    await store.close()
    async with running(tmp_path / "b", **{**settings, "etcd_prefix": "/anew"}):
        pass
    with pytest.raises(WrongInstallation, match="under /anew"):
        await Orchestrator(config_for(tmp_path / "c", **{**settings, "etcd_prefix": "/x"})).start()


async def test_one_that_was_made_before_there_was_a_register_is_noted_by_its_next_start(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    settings = at_etcd(cluster, "/older", ca)
    async with running(tmp_path / "a", **settings):
        pass
    forget_installations(cluster)
    async with running(tmp_path / "a", **settings):
        with pytest.raises(WrongInstallation, match="under /older"):
            await Orchestrator(
                config_for(tmp_path / "b", **{**settings, "etcd_prefix": "/y"})
            ).start()


async def test_another_ca_may_have_its_own_beside_it(
    cluster: EtcdCluster, ca: Path, tmp_path: Path
) -> None:
    settings = at_etcd(cluster, "/ours", ca)
    theirs = {**settings, "etcd_prefix": "/theirs", "ca_dir": str(make_ca(tmp_path / "ca"))}
    async with running(tmp_path / "a", **settings), running(tmp_path / "b", **theirs):
        pass


async def test_who_may_touch_its_own_prefix_only_is_warned(
    cluster: EtcdCluster,
    ca: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise StoreUnusable("reading at etcd: etcdserver: permission denied")

    monkeypatch.setattr(founding, "open_address", refused)
    async with running(tmp_path / "a", **at_etcd(cluster, "/alone", ca)):
        assert "permission denied" in caplog.text
