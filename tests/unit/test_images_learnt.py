"""Images that do not exist for an architecture: learnt from nodes, believed, and forgotten."""

import json
from dataclasses import dataclass, field, replace

from orchestrator.domain.images import FORGET_S, lacks_in, learn
from orchestrator.records import KeptRecord, TemplateRevision
from orchestrator.scheduling.decisions import Cause, Plan
from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.snapshot import IMAGE_PLATFORM, Mode, Node, Observed, Snapshot
from orchestrator.scheduling.tick import Batch, Moment
from orchestrator.scheduling.tick import World as Tick
from orchestrator.store import keys
from tests.unit.scheduling_world import SMALL, World, box

TAG = {"containers": [{"name": "app", "image": "registry.example/app:1"}]}
PINNED = {"containers": [{"name": "app", "image": f"registry.example/app@sha256:{'a' * 64}"}]}
WEB = "uid-web"


@dataclass
class Fleet:
    """A world in which images are for some architectures only, with the leader's records."""

    built_for: tuple[str, ...]
    world: World = field(default_factory=World)
    kept: dict[str, KeptRecord] = field(default_factory=dict)
    revisions: dict[tuple[str, int], TemplateRevision] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def want(self, name: str, template: dict[str, object] = TAG, **facts: object) -> None:
        self.world.want(name, **facts)
        self.revisions[f"uid-{name}", 1] = TemplateRevision(f"uid-{name}", 1, template, "", 0)

    def snapshot(self) -> Snapshot:
        templates = dict(self.world.templates)
        for key, lack in lacks_in(self.kept.values(), self.world.now).items():
            templates[key] = replace(
                templates[key], foreign_nodes=lack.nodes, foreign_archs=lack.archs
            )
        return replace(self.world.snapshot(), templates=templates)

    def learn(self) -> tuple[Batch, ...]:
        """What the leader writes, written."""
        tick = Tick(self.snapshot(), revisions=self.revisions, kept=dict(self.kept))
        batches = learn(tick, Moment(self.world.now, self.world.now))
        for batch in batches:
            for write in batch.writes:
                before = self.kept.get(write.key)
                assert write.expected == (before.store_revision if before else 0)
                self.world.revision += 1
                if write.value is None:
                    del self.kept[write.key]
                else:
                    body = json.loads(write.value)
                    self.kept[write.key] = KeptRecord(write.key, body, self.world.revision)
            self.told += [tell.message for tell in batch.tells]
        return batches

    def step(self) -> Plan:
        """The agents obey as far as images let them; then the leader learns and plans."""
        self.world.obey()
        for name, placement in self.world.placements.items():
            for stay in placement.assignments:
                if self.world.nodes[name].arch not in self.built_for:
                    self.world.observed[name, stay.replica_uid] = cannot(stay.revision)
        self.learn()
        learnt = self.snapshot().templates
        known, self.world.templates = self.world.templates, dict(learnt)
        try:
            return self.world.step()
        finally:
            self.world.templates = known

    def settle(self) -> None:
        for _ in range(20):
            if self.step().changes_nothing:
                return
        raise AssertionError("the world does not settle")


def cannot(revision: int) -> Observed:
    return Observed(False, False, revision, reason=IMAGE_PLATFORM)


def arm(name: str, site: str = "s1") -> Node:
    return box(name, site, arch="arm64")


def amd(name: str, site: str = "s1") -> Node:
    return box(name, site, arch="amd64")


def why(fleet: Fleet, node: str) -> list[tuple[str, str]]:
    snapshot = fleet.snapshot()
    (workload,) = snapshot.workloads
    (verdict,) = explain(snapshot, workload, 0.0, nodes=[node]).verdicts
    return [(reason.code, reason.text) for reason in verdict.reasons]


def test_a_replica_leaves_a_node_that_its_image_is_not_for_and_why_says_so() -> None:
    fleet = Fleet(("amd64",))
    fleet.world.add(arm("pi"))
    fleet.want("web")
    fleet.settle()
    assert fleet.world.where() == {"web-0": "pi"}, "there is no other place"
    fleet.world.add(amd("server"))
    fleet.settle()
    assert fleet.world.where() == {"web-0": "server"}
    text = "an image of it does not exist for arm64, says the node itself"
    assert why(fleet, "pi") == [(IMAGE_PLATFORM, text)] and why(fleet, "server") == []
    assert "says node pi: nothing of it goes to it again" in fleet.told[0]
    assert len(fleet.told) == 1, "it is told once"


def test_of_an_architecture_two_nodes_are_believed_and_a_third_is_not_tried() -> None:
    fleet = Fleet(("amd64",))
    fleet.world.add(*(arm(f"pi-{n}") for n in range(5)))
    fleet.want("web")
    for _ in range(10):
        fleet.step()
    (lack,) = lacks_in(fleet.kept.values(), 0.0).values()
    assert len(lack.nodes) == 2 and lack.archs == ("arm64",)
    untried = next(node for node in fleet.world.nodes if node not in lack.nodes)
    who = f"say node {lack.nodes[0]} and others"
    assert why(fleet, untried)[0][1].endswith(f"for arm64, {who}")
    fleet.world.change(untried, arch="")
    assert "its own is not known" in why(fleet, untried)[0][1]
    fleet.world.add(amd("server"))
    fleet.settle()
    assert fleet.world.where() == {"web-0": "server"}


def test_where_it_runs_nobody_is_believed_that_it_cannot() -> None:
    """Two broken or lying nodes take no workload away from a whole architecture."""
    fleet = Fleet(("arm64",))
    fleet.world.add(*(arm(f"pi-{n}") for n in range(4)))
    fleet.want("web", mode=Mode.PER_NODE)
    fleet.settle()
    placed = fleet.world.placements
    for node in ("pi-0", "pi-1"):
        (stay,) = placed[node].assignments
        fleet.world.observed[node, stay.replica_uid] = cannot(1)
    fleet.learn()
    (lack,) = lacks_in(fleet.kept.values(), 0.0).values()
    assert lack.nodes == ("pi-0", "pi-1") and lack.archs == ()
    fleet.settle()
    assert sorted(fleet.world.where().values()) == ["pi-0", "pi-1", "pi-2", "pi-3"], (
        "what was told is no reason to stop what runs again"
    )


def test_one_per_node_goes_from_where_it_cannot_run_and_does_not_come_back() -> None:
    fleet = Fleet(("amd64",))
    fleet.world.add(arm("pi"), amd("one"), amd("two"))
    fleet.want("web", mode=Mode.PER_NODE)
    plans = [fleet.step() for _ in range(3)]
    stops = [stop for plan in plans for stop in plan.stop]
    assert [(stop.node, stop.cause) for stop in stops] == [("pi", Cause.IMAGE_PLATFORM)]
    fleet.settle()
    assert fleet.world.where() == {"web-one": "one", "web-two": "two"}


def test_a_serving_replica_waits_for_its_successor_on_a_node_that_the_new_image_is_for() -> None:
    fleet = Fleet(("amd64", "arm64"))
    fleet.world.add(arm("pi"))
    fleet.want("web")
    fleet.settle()
    fleet.world.add(amd("server"))
    fleet.world.update("web", replace(SMALL, host_ports=((80, "TCP"),)))
    fleet.revisions[WEB, 2] = TemplateRevision(WEB, 2, TAG, "", 0)
    body = {"pinned": True, "told": {"pi": {"arch": "arm64", "at_ms": 0}}, "agreed": []}
    fleet.kept[keys.images(WEB, 2)] = KeptRecord(keys.images(WEB, 2), body, 1)
    first = fleet.step()
    assert [place.node for place in first.place] == ["server"] and not first.stop
    fleet.settle()
    assert fleet.world.where() == {"web-0": "server"}


def test_a_tag_may_be_another_image_tomorrow_and_a_digest_never_is() -> None:
    for template, after in ((TAG, 0), (PINNED, 1)):
        fleet = Fleet(("amd64",))
        fleet.world.add(arm("pi"), amd("server"))
        fleet.want("web", template, mode=Mode.PER_NODE)
        fleet.settle()
        assert len(lacks_in(fleet.kept.values(), fleet.world.now)) == 1
        fleet.world.now += FORGET_S + 1
        assert len(lacks_in(fleet.kept.values(), fleet.world.now)) == after
        fleet.learn()
        assert len(fleet.kept) == after


def test_what_is_known_goes_with_its_revision() -> None:
    fleet = Fleet(("amd64",))
    fleet.world.add(arm("pi"), amd("server"))
    fleet.want("web", mode=Mode.PER_NODE)
    fleet.settle()
    assert list(fleet.kept) == [keys.images(WEB, 1)]
    del fleet.revisions[WEB, 1]
    fleet.learn()
    assert not fleet.kept


def test_a_record_that_nobody_understands_bars_nothing_and_goes() -> None:
    fleet = Fleet(("arm64",))
    key = keys.images(WEB, 1)
    for body in ({}, {"told": 3, "agreed": [], "pinned": True}, {"told": {"n": {}}}):
        fleet.kept[key] = KeptRecord(key, body, 1)
        assert lacks_in(fleet.kept.values(), 0.0) == {}
        fleet.learn()
        assert not fleet.kept


def test_a_word_about_another_revision_or_from_a_node_of_unknown_kind_is_not_heard() -> None:
    fleet = Fleet(("amd64", "arm64", ""))
    fleet.world.add(arm("pi"))
    fleet.want("web")
    fleet.settle()
    (stay,) = fleet.world.placements["pi"].assignments
    fleet.world.observed["pi", stay.replica_uid] = cannot(7)
    assert fleet.learn() == ()
    fleet.world.observed["pi", stay.replica_uid] = cannot(1)
    fleet.world.change("pi", arch="")
    assert fleet.learn() == ()
