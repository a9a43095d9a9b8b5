"""`edgectl get regions|members`, `describe region`, `delete member` and `drill`: a small API."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgectl import config_file
from edgectl.__main__ import main
from edgectl.verbs import drill as drill_verb
from polder.v1 import common_pb2, operator_pb2
from tests.integration.edgectl_server import FakeInstallation, now_ms

Run = Callable[..., tuple[int, str, str]]
Answer = operator_pb2.DrillResponse


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeInstallation]:
    installation = FakeInstallation()
    yield installation
    installation.stop()


@pytest.fixture
def fake(shared: FakeInstallation) -> FakeInstallation:
    shared.api.__init__(shared.authority)  # type: ignore[misc] # a fresh state, the same port
    return shared


@pytest.fixture
def run(
    fake: FakeInstallation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """(exit code, stdout, stderr) of a command line."""
    path = tmp_path / "config.yaml"
    config_file.write_private(path, config_file.render(fake.context()), overwrite=True)
    monkeypatch.setenv("EDGECTL_CONFIG", str(path))
    monkeypatch.setattr(drill_verb, "_AGAIN_EVERY_S", 0.01)

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def three_members(fake: FakeInstallation) -> None:
    """One answers, one is silent although present, one is gone."""
    now = now_ms()
    one = operator_pb2.MemberInfo(
        name="c1", region="eu-central", version="0.5.0", leader=True, present=True, reachable=True,
        sessions=120, lag_revisions=0, lag_ms=0, store_healthy=True, started_at_ms=now - 3_600_000,
        heard_at_ms=now, endpoints=["10.0.0.1:7443"],
    )  # fmt: skip
    two = operator_pb2.MemberInfo(
        name="c2", region="eu-central", version="0.5.0", present=True, sessions=-1,
        lag_revisions=-1, lag_ms=-1, started_at_ms=now - 60_000, heard_at_ms=now - 42_000,
        message="cannot be reached: no answer",
    )  # fmt: skip
    three = operator_pb2.MemberInfo(
        name="w1", region="eu-west", version="0.4.0", sessions=-1, lag_revisions=-1, lag_ms=-1,
        message="not there: it ended, or its lease in the store ran out",
    )  # fmt: skip
    fake.api.regions.CopyFrom(
        operator_pb2.RegionsResponse(
            regions=[
                operator_pb2.RegionInfo(
                    name="eu-central", members=[one, two], latitude=50.1, longitude=8.7
                ),
                operator_pb2.RegionInfo(name="eu-west", members=[three]),
            ],
            store=[
                operator_pb2.StoreMemberInfo(
                    endpoint="10.0.0.1:2379", version="3.4.23", leader=True, revision=77,
                    db_bytes=5 << 20, alarms=["NOSPACE"],
                ),
                operator_pb2.StoreMemberInfo(endpoint="10.0.0.2:2379", error="timed out"),
            ],
            store_kind="etcd", now_ms=now, member="c1", leader="c1",
        )
    )  # fmt: skip


def cells(out: str) -> list[list[str]]:
    """Columns are apart by three spaces or more."""
    return [
        [cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.splitlines()
    ]


# --- showing --------------------------------------------------------------------------------------


def test_get_regions(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    code, out, err = run("get", "regions")
    assert code == 0
    header, central, west = cells(out)
    assert header == ["NAME", "STATE", "MEMBERS", "LEADER", "SESSIONS", "STORE", "LAG", "HEARD"]
    assert central == [
        "eu-central",
        "Degraded",
        "2/2",
        "c1",
        "120 (1 unknown)",
        "etcd ok",
        "0s",
        "42s ago",
    ]
    assert west == ["eu-west", "Lost", "0/1", "-", "0", "<unknown>", "<unknown>", "<none>"]
    assert "warning: etcd 10.0.0.1:2379: NOSPACE" in err
    assert "etcd 10.0.0.2:2379 does not answer: timed out" in err
    assert "warning: member c2: cannot be reached: no answer" in err
    assert "w1" not in err, "what the table says of a region that is lost needs no warning"
    _, out, _ = run("get", "region/eu-west", "-o", "wide", "--no-headers")
    assert out.startswith("eu-west") and "does not answer: timed out" in out
    assert run("get", "regions", "-o", "name")[1] == "region/eu-central\nregion/eu-west\n"


def test_get_members(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    _, out, _ = run("get", "members")
    _, one, two, three = cells(out)
    assert one == ["c1", "eu-central", "0.5.0", "yes", "120", "self", "0s", "-", "0s ago", "60m"]
    unknown = "<unknown>"
    assert two == [
        "c2", "eu-central", "0.5.0", "-", unknown, "down", unknown, unknown, "42s ago", "60s",
    ]  # fmt: skip
    assert three[5:] == ["gone", unknown, unknown, "never", "<none>"]
    _, out, _ = run("get", "member", "c1", "-o", "json")
    shown = json.loads(out)
    assert [item["name"] for item in shown["items"]] == ["c1"] and shown["leader"] == "c1"
    _, out, _ = run("get", "members", "-o", "json")
    assert "sessions" not in json.loads(out)["items"][1]  # not known is not a number
    assert "kind: MemberList" in run("get", "members", "-o", "yaml")[1]


def test_a_store_that_does_not_answer_leaves_the_leader_unknown(
    fake: FakeInstallation, run: Run
) -> None:
    three_members(fake)
    fake.api.regions.leader = ""
    fake.api.regions.regions[0].members[0].leader = False
    fake.api.regions.store_error = "the store did not answer within 2 s"
    _, out, err = run("get", "regions")
    assert cells(out)[1][3] == "<unknown>"
    assert "who leads is not known" in err and "nobody leads" not in err


def test_a_drill_is_shown(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    fake.api.regions.regions[1].drill_until_ms = fake.api.regions.now_ms + 65_000
    assert cells(run("get", "regions")[1])[2][1] == "Drill (65s left)"


def test_describe_tells_a_regions_events(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    for kind, name, reason in (
        ("Region", "eu-central", "DrillEnded"),
        ("Member", "c2", "MemberGone"),
        ("Member", "w1", "Leads"),
    ):
        fake.api.events.append(
            common_pb2.Event(
                object=common_pb2.ResourceRef(kind=kind, name=name), reason=reason,
                message="so", last_at_ms=now_ms(), first_at_ms=now_ms(), count=1,
            )
        )  # fmt: skip
    code, out, _ = run("describe", "region/eu-central")
    assert "MemberGone" in out and "member/c2" in out and "Leads" not in out
    assert code == 0 and "c2: cannot be reached: no answer" in out and "DrillEnded" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("get", "regions", "-w"), 2, "cannot be watched"),
        (("get", "regions", "-l", "a=b"), 2, "no labels"),
        (("get", "regions,nodes"), 2, "shown alone"),
        (("get", "region/a", "node/b"), 2, "shown alone"),
        (("get", "regions", "-o", "jsonpath={.x}"), 2, "is not a format"),
        (("get", "region", "mars"), 1, "there is no region 'mars'"),
        (("delete", "region/eu-west"), 2, "name the member"),
    ],
)
def test_what_cannot_be_asked(
    fake: FakeInstallation, run: Run, words: tuple[str, ...], code: int, said: str
) -> None:
    three_members(fake)
    found, _, err = run(*words)
    assert found == code and said in err


def test_delete_member(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    assert run("delete", "member/w1", "--dry-run")[1] == "member/w1 deleted (dry run)\n"
    assert "is present" in run("delete", "member/c1", "--dry-run")[2]
    assert not fake.api.called("ForgetMember")
    assert run("delete", "member/w1")[:2] == (0, "member/w1 deleted: forgotten\n")
    assert run("delete", "member", "nope")[0] == 1
    assert run("delete", "member", "nope", "--ignore-not-found")[0] == 0


# --- drills ---------------------------------------------------------------------------------------


def progress(message: str, **more: int) -> Answer:
    return Answer(progress=operator_pb2.DrillProgress(message=message, **more))


def good_report(**changes: object) -> operator_pb2.DrillReport:
    report = operator_pb2.DrillReport(
        region="eu-west", started_at_ms=now_ms() - 60_000, started_by="operator/ada",
        duration_s=60.0, members=["w1"], had_leader=True, leader="c1", leader_s=6.25,
        detected_s=10.5, nodes=40, nodes_back=40, reconnect_p50_s=0.8, reconnect_p99_s=1.9,
        reconnect_last_s=2.2, write_s=0.03, measured_by="c1",
    )  # fmt: skip
    report.MergeFrom(operator_pb2.DrillReport(**changes))  # type: ignore[arg-type]
    return report


def test_a_drill_that_nobody_noticed(fake: FakeInstallation, run: Run) -> None:
    more = {"elapsed_ms": 2500, "left_ms": 57_000, "nodes": 40, "nodes_back": 40}
    fake.api.drills = [
        [progress("began"), progress("all are back", **more), Answer(report=good_report())]
    ]
    code, out, err = run("drill", "region", "eu-west", "--for", "1m", "--reason", "why not")
    assert code == 0
    assert "all are back; 40 of 40 nodes are connected elsewhere; 57s left" in err
    assert "c1 led after 6.2s" in out and "p50 0.8s, p99 1.9s, last 2.2s" in out
    (sent,) = fake.api.called("Drill")
    assert (sent.region, sent.duration_ms, sent.reason) == ("eu-west", 60_000, "why not")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 42, "not_back": ["n1", "n2"]}, "2 nodes did not connect elsewhere: n1, n2"),
        ({"plan_changes": 3}, "the leader changed 3 assignments"),
        ({"restarts": 1}, "containers of 1 replicas were restarted"),
        ({"leader_s": -1.0}, "no other member led"),
        ({"write_s": -1.0}, "no write was accepted"),
    ],
)
def test_a_drill_that_failed_says_at_what(
    fake: FakeInstallation, run: Run, changes: dict[str, object], said: str
) -> None:
    fake.api.drills = [[Answer(report=good_report(**changes))]]
    code, _, err = run("drill", "region", "eu-west", "--follow")
    assert code == 1 and f"failed: {said}" in err
    fake.api.drills = [[Answer(report=good_report(**changes))]]
    code, out, _ = run("drill", "region", "eu-west", "--follow", "-o", "json")
    shown = json.loads(out)
    assert code == 1 and not shown["passed"] and said in shown["failures"][0]


def test_a_drill_that_nobody_measured_has_not_passed(fake: FakeInstallation, run: Run) -> None:
    report = operator_pb2.DrillReport(region="eu-west", detected_s=-1.0)
    fake.api.drills = [[Answer(report=report)]]
    code, out, _ = run("drill", "region", "eu-west", "--follow", "-o", "json")
    assert code == 1 and json.loads(out)["detectedS"] is None


def test_it_is_followed_elsewhere_when_who_told_it_goes(fake: FakeInstallation, run: Run) -> None:
    fake.api.drills = [
        [progress("began"), "the member stops"],
        ["it is not back yet"],
        [progress("goes on"), Answer(report=good_report())],
    ]
    code, _, err = run("drill", "region", "region/eu-west", "--for", "2m")
    assert code == 0 and "asking another member" in err
    asked = fake.api.called("Drill")
    assert not asked[0].follow_only
    assert all(each.follow_only and not each.duration_ms for each in asked[1:])


def test_a_dry_run_and_an_early_end(fake: FakeInstallation, run: Run) -> None:
    fake.api.drills = [[progress("would silence 1 members (w1) for 1m")]]
    code, out, _ = run("drill", "region", "eu-west", "--for", "1m", "--dry-run")
    assert (code, out) == (0, "would silence 1 members (w1) for 1m\n")
    assert fake.api.called("Drill")[0].dry_run
    assert run("drill", "region", "eu-west", "--end")[:2] == (0, "region/eu-west: ended\n")


@pytest.mark.parametrize("words", [(), ("--end", "--follow"), ("--for", "1m", "--end")])
def test_one_thing_at_a_time(fake: FakeInstallation, run: Run, words: tuple[str, ...]) -> None:
    code, _, err = run("drill", "region", "eu-west", *words)
    assert code == 2 and "give one of --for TIME, --follow and --end" in err


def test_events_of_a_region(fake: FakeInstallation, run: Run) -> None:
    assert run("events", "--for", "region/eu-west")[0] == 0
    (asked,) = fake.api.called("Events")
    assert (asked.object.kind, asked.object.name) == ("Region", "eu-west")


# --- versions ---------------------------------------------------------------------------------


def test_version_shows_every_member_and_the_agents(fake: FakeInstallation, run: Run) -> None:
    three_members(fake)
    fake.api.releases.nodes_by_version.update({"0.5.0": 9998, "0.10.0": 1, "0.4.7": 2})
    code, out, err = run("version")
    assert code == 0
    assert out.splitlines()[1:5] == [
        "server:    0.1.0",
        "member:    local/m0",
        "identity:  spiffe://polder.test/operator/ada",
        "roles:     admin",
    ]
    # The one that is gone does not count; the one that answers has not said it is there.
    assert out.splitlines()[5:] == [
        "members:   0.1.0  local/m0",
        "           0.5.0  eu-central/c1, eu-central/c2",
        "agents:    0.4.7   2 nodes",
        "           0.5.0   9998 nodes",
        "           0.10.0  1 node",
        "supported: <unknown>",
    ]
    assert "member m0 runs 0.1.0 and member c1 0.5.0" in err


def test_version_says_what_is_supported_and_what_is_beyond(
    fake: FakeInstallation, run: Run
) -> None:
    here = operator_pb2.MemberInfo(name="m0", region="local", version="0.1.0", present=True)
    fake.api.regions.regions.add(name="local", members=[here])
    assert "agents:    none\n" in run("version")[1]
    fake.api.releases.nodes_by_version["0.2.0"] = 3
    code, out, err = run("version")
    assert code == 0
    assert out.splitlines()[-1] == (
        "supported: edgectl 0.0 to 0.2, members 0.0 to 0.2, agents 0.0 to 0.1"
    )
    said = (
        "agents are supported at 0.0 to 0.1, and there are 3 at 0.2.0 (upgrade the members first)"
    )
    assert err == f"warning: {said}\n"
    document = json.loads(run("version", "-o", "json")[1])
    assert document["agents"] == {"0.2.0": 3}
    assert document["supported"]["agents"] == "0.0 to 0.1"
    assert document["members"] == [{"name": "m0", "region": "local", "version": "0.1.0"}]
    assert document["warnings"] == [said]


def test_version_of_an_orchestrator_that_does_not_know_the_calls(
    fake: FakeInstallation, run: Run
) -> None:
    fake.api.unknown = ("Regions", "Releases")
    code, out, err = run("version")
    assert code == 0
    assert "members:   0.1.0  local/m0" in out
    assert "agents:    <unknown>" in out
    assert "warning: agents: not known: " in err
    assert "agents" not in json.loads(run("version", "-o", "json")[1])


def test_version_of_edgectl_alone_asks_nobody(fake: FakeInstallation, run: Run) -> None:
    code, out, err = run("version", "--client")
    assert (code, err) == (0, "")
    assert out.startswith("client:    ") and out.count("\n") == 1
    assert fake.api.calls == []
