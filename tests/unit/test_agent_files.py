"""Files of pods: which are needed, how they are written, and what paths of the box may be seen."""

import asyncio
import errno
import itertools
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent import mounts
from agent.domain.compose import DEFAULT_USER, Settings, as_user, check, environment
from agent.domain.files import (
    HostPath,
    Kept,
    Local,
    PodFiles,
    Projected,
    Scratch,
    allowing,
    host_rule,
    pod_files,
)
from agent.domain.given import Given, Unresolved, given_by
from agent.domain.plan import Assignment
from agent.main import main
from agent.runtime.port import ContainerFailure, ContainerSpec, Device, ImageUser, Mount
from agent.volumes import DATA, Owner, Volumes, write_volume
from polder.manifest.volumes import VolumeMount
from polder.v1 import plan_pb2
from tests.sim.agent_plans import assignment, plan, template

CONFIG = plan_pb2.ConfigData(namespace="default", name="web", data={"a.conf": "x", "b": "é"})
SECRET = plan_pb2.SecretData(
    namespace="default", name="tls", type="Opaque", data={"key": b"\xff", "sub/dir": b"no"}
)
SETTINGS = Settings("box-1", "nl-utr-1", "/logs", host_paths=("/srv/data", "/etc/ssl:ro"))


def world(**pod: Any) -> tuple[Assignment, Given]:
    made = plan(
        1,
        [assignment("u", template(**pod), replica="web-3", epoch=7)],
        configs=[CONFIG],
        secrets=[SECRET],
        facts={"site.country": "NL", "node.labels.zone": ""},
    )
    return made.assignments["u"], given_by(made)


def needed(*volumes: dict[str, Any]) -> PodFiles:
    found, given = world(volumes=list(volumes))
    assert found.template is not None, found.error
    return pod_files(found, found.template, given, SETTINGS.host_paths)


def test_every_kind_of_volume() -> None:
    assert needed(
        {"name": "c", "config": {"name": "web"}},
        {"name": "s", "secret": {"name": "tls", "items": {"key": "tls.key"}}},
        {"name": "d", "scratch": {}},
        {"name": "m", "scratch": {"memory": True}},
        {"name": "n", "scratch": {"memory": True, "sizeMax": "8Mi"}},
        {"name": "l", "local": {}},
        {"name": "h", "hostPath": {"path": "/srv/data/in"}},
    ).volumes == (
        Projected("c", False, {"a.conf": "x", "b": "é"}),
        Projected("s", True, {"tls.key": b"\xff"}),
        Scratch("d"),
        Scratch("m", 64 << 20),
        Scratch("n", 8 << 20),
        Local("l", "default", "web-3"),
        HostPath("h", "/srv/data/in"),
    )


@pytest.mark.parametrize(
    ("volume", "reason", "words"),
    [
        ({"config": {"name": "none"}}, "ConfigMissing", "no config 'none' in namespace 'default'"),
        ({"config": {"name": "web", "items": {"z": "z"}}}, "ConfigMissing", "has no key 'z'"),
        ({"secret": {"name": "none"}}, "SecretMissing", "no secret 'none'"),
        ({"secret": {"name": "tls"}}, "BadFileName", "'sub/dir' is no file name"),
        ({"hostPath": {"path": "/etc/shadow"}}, "HostPathNotAllowed", "does not allow '/etc/sh"),
    ],
)
def test_what_is_missing_is_said(volume: dict[str, Any], reason: str, words: str) -> None:
    found, given = world(volumes=[{"name": "v", **volume}])
    assert found.template is not None
    with pytest.raises(Unresolved, match=words) as caught:
        check(SETTINGS, found, found.template, given)
    assert caught.value.reason == reason


def test_a_pod_that_was_started_keeps_files_whose_source_is_gone() -> None:
    found, given = world(
        volumes=[
            {"name": "c", "config": {"name": "none"}},
            {"name": "h", "hostPath": {"path": "/srv/data"}},
        ]
    )
    assert found.template is not None
    kept = pod_files(found, found.template, given, SETTINGS.host_paths, started=True)
    assert kept.volumes == (Kept("c", False), HostPath("h", "/srv/data"))
    with pytest.raises(Unresolved) as caught:  # what the box forbids it forbids
        pod_files(found, found.template, given, (), started=True)
    assert caught.value.reason == "HostPathNotAllowed"


def test_variables_from_configs_and_facts() -> None:
    facts = {
        "A": "site.country",
        "B": "node.labels.zone",
        "C": "node.name",
        "D": "replica.name",
        "E": "replica.index",
        "F": "replica.epoch",
    }
    env = [{"name": name, "fact": fact} for name, fact in facts.items()]
    env.append({"name": "G", "config": {"name": "web", "key": "b"}})
    found, given = world(env=env)
    assert found.template is not None
    made = dict(environment(SETTINGS, found, found.template.containers[0], given))
    assert [made[name] for name in "ABCDEFG"] == ["NL", "", "box-1", "web-3", "3", "7", "é"]


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ({"fact": "site.region"}, "FactMissing"),
        ({"fact": "node.labels.other"}, "FactMissing"),
        ({"config": {"name": "web", "key": "z"}}, "ConfigMissing"),
        ({"config": {"name": "none", "key": "z"}}, "ConfigMissing"),
        ({"secret": {"name": "tls", "key": "z"}}, "SecretMissing"),
    ],
)
def test_a_variable_without_a_value_is_no_variable(variable: dict[str, Any], reason: str) -> None:
    found, given = world(env=[{"name": "A", **variable}])
    assert found.template is not None
    with pytest.raises(Unresolved) as caught:
        check(SETTINGS, found, found.template, given)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("spec", "image", "runs_as"),
    [
        ((None, None), ImageUser(), (DEFAULT_USER, "", DEFAULT_USER)),
        ((None, None), ImageUser(uid=0), (DEFAULT_USER, "", DEFAULT_USER)),
        ((None, None), ImageUser(name="root"), (DEFAULT_USER, "", DEFAULT_USER)),
        ((None, None), ImageUser(uid=101), (None, "", None)),
        ((None, None), ImageUser(name="app"), (None, "", None)),
        ((None, 7), ImageUser(uid=101), (101, "", 7)),
        ((None, 7), ImageUser(name="app"), (None, "app", 7)),
        ((None, 7), ImageUser(), (DEFAULT_USER, "", 7)),
        ((0, None), ImageUser(uid=101), (0, "", 0)),
        ((1000, None), ImageUser(), (1000, "", 1000)),
        ((1000, 100), ImageUser(), (1000, "", 100)),
    ],
)
def test_nobody_is_root_by_accident(
    spec: tuple[int | None, int | None],
    image: ImageUser,
    runs_as: tuple[int | None, str, int | None],
) -> None:
    given = ContainerSpec("app", "i", 0, run_as_user=spec[0], run_as_group=spec[1])
    made = as_user(given, image)
    assert (made.run_as_user, made.run_as_username, made.run_as_group) == runs_as


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/srv/data", "/srv/data"),
        ("/srv/data/a//b/.", "/srv/data"),
        ("/srv/data/keys/x", "/srv/data/keys:ro"),
        ("/srv/database", ""),
        ("/srv", ""),
        ("/srv/data/../../etc", ""),
        ("srv/data", ""),
        ("//srv/data", "/srv/data"),
    ],
)
def test_host_paths_are_prefixes_of_whole_names(path: str, rule: str) -> None:
    found = allowing(("/srv/data", "/srv/data/keys/:ro"), path)
    assert found == (host_rule(rule) if rule else None)


# --- on disk --------------------------------------------------------------------------------------


def read(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.startswith("..")}


def test_a_volume_holds_exactly_what_is_given(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    write_volume(volume, {"a": "1", "b": b"\xff"}, 0o444)
    assert read(volume) == {"a": b"1", "b": b"\xff"}
    first = (volume / DATA).readlink()
    assert stat.S_IMODE((volume / "a").stat().st_mode) == 0o444
    write_volume(volume, {"a": "1", "b": b"\xff"}, 0o444)
    assert (volume / DATA).readlink() == first, "nothing is written for nothing"
    inode = volume.stat().st_ino
    write_volume(volume, {"b": "2", "c": "3"}, 0o444)
    assert read(volume) == {"b": b"2", "c": b"3"}
    assert volume.stat().st_ino == inode, "a mount of it goes on"
    assert len(list(volume.iterdir())) == 4, "older versions are gone"
    write_volume(volume, {}, 0o444)
    assert read(volume) == {}


def test_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    write_volume(volume, {"a": "1"}, 0o644)
    (volume / "..2026_01_01_00_00_00.dead").mkdir()
    (volume / "..data_tmp").symlink_to("..2026_01_01_00_00_00.dead")
    (volume / "..2026_01_01_00_00_00.dead" / "a").write_text("half")
    write_volume(volume, {"a": "2"}, 0o644)
    assert read(volume) == {"a": b"2"} and len(list(volume.iterdir())) == 3


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = tmp_path / "v"
    write_volume(volume, {"a": "old", "b": "old"}, 0o644)
    before = sorted(p.name for p in volume.iterdir())
    real_open = os.open

    def full(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("/b"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(path, *rest, **more)

    monkeypatch.setattr("agent.volumes.os.open", full)
    with pytest.raises(OSError, match="No space left"):
        write_volume(volume, {"a": "new", "b": "new", "c": "new"}, 0o644)
    assert read(volume) == {"a": b"old", "b": b"old"}
    assert sorted(p.name for p in volume.iterdir()) == before


def test_readers_never_see_a_mixture(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    names = [f"k{n}" for n in range(5)]
    write_volume(volume, dict.fromkeys(names, "0"), 0o644)
    seen: list[set[bytes]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            # As a program does that wants a consistent set: through one resolution of ..data.
            version = (volume / DATA).resolve()
            try:
                seen.append({(version / name).read_bytes() for name in names})
            except FileNotFoundError:
                continue  # it was replaced meanwhile

    reader = threading.Thread(target=watch)
    reader.start()
    deadline = time.monotonic() + 60
    for number in itertools.count(1):
        write_volume(volume, dict.fromkeys(names, str(number)), 0o644)
        if number >= 100 and len(set().union(*seen)) > 1:
            break
        assert time.monotonic() < deadline, "the reader has not seen two versions"
    done.set()
    reader.join()
    assert all(len(values) == 1 for values in seen)


def volumes(tmp_path: Path, *host_paths: str) -> Volumes:
    return Volumes(tmp_path / "state", host_paths, run=tmp_path / "run")


NOBODY = Owner(1234, 1234)


async def test_directories_for_a_pod_and_what_stays(tmp_path: Path) -> None:
    keeper = volumes(tmp_path)
    assert not keeper.secrets_in_memory
    files = PodFiles(
        (
            Projected("c", False, {"a": "1"}),
            Projected("s", True, {"k": b"v"}),
            Scratch("d"),
            Local("l", "ns", "web-0"),
        )
    )
    wanted = [VolumeMount(name, f"/{name}") for name in "csdl"]
    ready = await keeper.prepare("pod1", files, wanted, NOBODY)
    assert [(m.container_path, m.read_only) for m in ready.mounts] == [
        ("/c", True),
        ("/s", True),
        ("/d", False),
        ("/l", False),
    ]
    paths = {m.container_path: Path(m.host_path) for m in ready.mounts}
    for root in ("pods", "secrets", "volumes"):
        assert stat.S_IMODE((tmp_path / "state" / root).stat().st_mode) == 0o700
    assert stat.S_IMODE((paths["/s"] / "k").stat().st_mode) == 0o444
    assert stat.S_IMODE((paths["/c"] / "a").stat().st_mode) == 0o644
    assert stat.S_IMODE(paths["/d"].stat().st_mode) == 0o777
    if os.geteuid() == 0:
        assert (paths["/l"].stat().st_uid, paths["/l"].stat().st_gid) == (1234, 1234)
    (paths["/l"] / "data").write_text("kept")
    await keeper.update("pod1", [Projected("c", False, {"a": "2"})])
    assert (paths["/c"] / "a").read_text() == "2"
    # A container that restarts changes no files: that is the business of update.
    await keeper.prepare("pod1", files, wanted, NOBODY)
    assert (paths["/c"] / "a").read_text() == "2"
    await keeper.discard("pod1")
    assert not (tmp_path / "state/pods/pod1").exists()
    assert not (tmp_path / "state/secrets/pod1").exists()
    assert (paths["/l"] / "data").read_text() == "kept"


async def test_leftovers_go_and_what_is_young_or_known_stays(tmp_path: Path) -> None:
    keeper = volumes(tmp_path)
    for pod in ("known", "old", "young"):
        files = PodFiles((Projected("c", False, {"a": "1"}),))
        await keeper.prepare(pod, files, [VolumeMount("c", "/c")], NOBODY)
    for pod in ("known", "old"):
        os.utime(tmp_path / "state/pods" / pod, (1, 1))
    await keeper.sweep({"known"})
    assert {p.name for p in (tmp_path / "state/pods").iterdir()} == {"known", "young"}


async def shown(tmp_path: Path, path: Path | str, *allowed: str, read_only: bool = False) -> Any:
    files = PodFiles((HostPath("h", str(path)),))
    wanted = [VolumeMount("h", "/h", read_only)]
    ready = await volumes(tmp_path, *allowed).prepare("p", files, wanted, NOBODY)
    (found,) = (*ready.mounts, *ready.devices)
    return found


async def test_host_paths_and_devices(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "in").mkdir(parents=True)
    assert await shown(tmp_path, data / "in", str(data)) == Mount(str(data / "in"), "/h", False)
    assert (await shown(tmp_path, data, str(data), read_only=True)).read_only
    assert (await shown(tmp_path, data, f"{data}:ro")).read_only
    assert await shown(tmp_path, "/dev/null", "/dev/null") == Device("/dev/null", "/h", "rw")
    assert await shown(tmp_path, "/dev/null", "/dev:ro") == Device("/dev/null", "/h", "r")


async def test_links_do_not_lead_out(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    (data / "out").symlink_to(other)
    (data / "shadow").symlink_to("/etc/shadow")
    (tmp_path / "alias").symlink_to(data)
    for name in ("out", "shadow"):
        with pytest.raises(ContainerFailure, match="leads to") as caught:
            await shown(tmp_path, data / name, str(data))
        assert caught.value.reason == "HostPathNotAllowed"
    both = await shown(tmp_path, data / "out", str(data), f"{other}:ro")
    assert both == Mount(str(other), "/h", True), "what it leads to is protected"
    through = await shown(tmp_path, tmp_path / "alias", str(tmp_path / "alias"))
    assert through.host_path == str(data), "an allowed link is allowed for what it leads to"
    with pytest.raises(ContainerFailure) as caught:
        await shown(tmp_path, data / "none", str(data))
    assert caught.value.reason == "HostPathMissing"


async def test_the_agents_own_files_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "state/identity").mkdir(parents=True)
    for path in ("state/identity", "state", "."):
        with pytest.raises(ContainerFailure, match="not allowed"):
            await shown(tmp_path, (tmp_path / path).resolve(), str(tmp_path))


async def test_read_only_means_also_what_is_mounted_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(mounts, "below", lambda path: [f"{path}/usb"])
    with pytest.raises(ContainerFailure, match="another file system"):
        await shown(tmp_path, tmp_path / "run", f"{tmp_path}/run:ro")


async def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = volumes(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("agent.volumes.write_volume", full)
    with pytest.raises(ContainerFailure) as caught:
        await keeper.update("p", [Projected("c", False, {"a": "1"})])
    assert caught.value.reason == "DiskFull"


MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:22 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=100k
30 25 8:2 / /run/media\\040disk rw - vfat /dev/sdb1 rw
"""


def test_mountinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = mounts.parse(MOUNTINFO)
    assert [(p.path, p.kind) for p in points] == [
        ("/", "ext4"),
        ("/run", "tmpfs"),
        ("/run/media disk", "vfat"),
    ]
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", file)
    assert mounts.is_in_memory(Path("/run"))
    assert not mounts.is_in_memory(Path("/etc")) and not mounts.is_in_memory(Path("/nope"))
    assert mounts.below("/run") == ["/run/media disk"]
    assert mounts.below("/") == ["/run", "/run/media disk"]


def test_a_volume_is_written_off_the_event_loop(tmp_path: Path) -> None:
    """A slow disk must not delay heartbeats."""

    async def main() -> None:
        keeper = volumes(tmp_path)
        writing = asyncio.create_task(keeper.update("p", [Projected("c", False, {"a": "1"})]))
        await asyncio.sleep(0)
        assert not writing.done()
        await writing

    asyncio.run(main())


def test_local_data_is_deleted_by_hand_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for replica in ("web-0", "web-1"):
        directory = tmp_path / "volumes/ns" / replica / "data"
        directory.mkdir(parents=True)
        (directory / "x").write_text("kept")
    plan_ = plan_pb2.NodePlan(
        assignments=[plan_pb2.Assignment(namespace="ns", replica="web-0", replica_uid="u")]
    )
    signed = plan_pb2.SignedNodePlan(node_plan=plan_.SerializeToString())
    (tmp_path / "plan-current.pb").write_bytes(signed.SerializeToString())

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["volume", "--state-dir", str(tmp_path), *arguments])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    code, shown = run("list")
    rows = [line.split() for line in shown.splitlines()]
    assert code == 0 and rows[0] == ["NAMESPACE/REPLICA/VOLUME", "SIZE", "CHANGED", "USED"]
    assert [(row[0], row[-1]) for row in rows[1:]] == [
        ("ns/web-0/data", "yes"),
        ("ns/web-1/data", "no"),
    ]
    assert run("delete", "ns/web-0/data")[0] == 1
    assert "is assigned to this box" in run("delete", "ns/web-0/data")[1]
    for wrong in ("ns/web-1/..", "ns/web-1", "../../etc", "ns/web-9/data"):
        assert run("delete", wrong)[0] == 1
    assert run("delete")[0] == run("list", "ns/web-1/data")[0] == 2
    assert run("delete", "ns/web-1/data") == (0, "ns/web-1/data deleted\n")
    assert not (tmp_path / "volumes/ns/web-1").exists()
    assert (tmp_path / "volumes/ns/web-0/data/x").exists()


async def test_kept_files_must_be_there(tmp_path: Path) -> None:
    keeper, wanted = volumes(tmp_path), [VolumeMount("c", "/c")]
    with pytest.raises(ContainerFailure) as caught:
        await keeper.prepare("p", PodFiles((Kept("c", False),)), wanted, NOBODY)
    assert caught.value.reason == "ConfigMissing"
    made = PodFiles((Projected("c", False, {"a": "1"}),))
    first = await keeper.prepare("p", made, wanted, NOBODY)
    assert await keeper.prepare("p", PodFiles((Kept("c", False),)), wanted, NOBODY) == first
