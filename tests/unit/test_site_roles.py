"""What a node's plan says of its site: who has a role in what, and that every change is noticed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.cache import Cache, Change
from orchestrator.domain.overrides import LocalOverride
from orchestrator.domain.roles import ROLES_MAX, peers_of, roles_of
from orchestrator.gateway.roles import LOOKS_MAX, RoleBook
from orchestrator.records import (
    AssignmentRecord,
    ElectorateRecord,
    GroupRecord,
    IdentityRecord,
    NodePlacement,
    NodeStatusRecord,
    StoredResource,
    TemplateRevision,
)
from orchestrator.store import keys
from polder.overrides import Override
from polder.v1 import plan_pb2

TEMPLATE: dict[str, Any] = {
    "containers": [
        {"name": "a", "image": "x", "env": [{"name": "K", "secret": {"name": "s", "key": "k"}}]}
    ]
}


def stay(
    replica: str, *members: str, epoch: int = 1 << 16, uid: str = "", **more: Any
) -> AssignmentRecord:
    group = GroupRecord(1 << 16, members, **more) if members else None
    return AssignmentRecord(
        "ns", "web", "w", replica, uid or f"{replica}-{epoch}", epoch, 1, group=group
    )


def on(node: str, *stays: AssignmentRecord, **more: Any) -> NodePlacement:
    return NodePlacement(node, 1, stays, **more)


# --- the rule ---------------------------------------------------------------------------------


def test_members_may_take_over_and_witnesses_vote() -> None:
    placed = [on("a", stay("web-0", "a", "b", witnesses=("c",), exclusive=True), stay("web-1"))]
    (role,) = roles_of("b", placed)
    assert (role.primary, role.assignment.replica, role.witness) == ("a", "web-0", False)
    (role,) = roles_of("c", placed)
    assert role.witness
    assert roles_of("a", placed) == () and roles_of("d", placed) == ()
    assert peers_of("a", placed) == ("b", "c") and peers_of("c", placed) == ("a", "b")
    assert peers_of("d", placed) == ()


def test_who_voted_before_is_still_spoken_to() -> None:
    before = (ElectorateRecord(1, ("a", "d")),)
    placed = [on("a", stay("web-0", "a", "b", "c", exclusive=True, before=before))]
    assert peers_of("a", placed) == ("b", "c", "d") and peers_of("d", placed) == ("a", "b", "c")
    assert roles_of("d", placed) == ()


def test_of_two_stays_on_one_node_the_proven_one_counts() -> None:
    old, new = stay("web-0", "a", "b"), stay("web-0", "a", "b", epoch=2 << 16)
    for placed in (on("a", old, new), on("a", new, old)):
        (role,) = roles_of("b", [placed])
        assert role.assignment is old


def test_of_stays_on_two_nodes_the_newest_counts() -> None:
    old = on("a", stay("web-0", "a", "b", "c"))
    taken = on("b", stay("web-0", "b", "a", "c", epoch=(1 << 16) + 1))
    for placed in ([old, taken], [taken, old]):
        (role,) = roles_of("c", placed)
        assert role.primary == "b"


def test_whoever_has_a_stay_of_it_has_no_role_in_it() -> None:
    old = on("a", stay("web-0", "a", "b"))
    taken = on("b", stay("web-0", "b", "a", epoch=(1 << 16) + 1))
    assert roles_of("a", [old, taken]) == ()
    assert peers_of("a", [old, taken]) == ("b",)


def test_a_node_gets_no_more_roles_than_its_plan_can_hold() -> None:
    placed = on("a", *(stay(f"web-{n:05}", "a", "b") for n in range(ROLES_MAX + 5)))
    assert len(roles_of("b", [placed])) == ROLES_MAX


# --- the book ---------------------------------------------------------------------------------


class Mirror(Cache):
    """The real mirror; changes come from the test instead of a Store."""

    def __init__(self) -> None:
        super().__init__(None, lambda: 0.0)  # type: ignore[arg-type]

    def put(self, key: str, value: object | None) -> None:
        revision = self.revision + 1
        self._apply([Change(key, revision, value, self._values.get(key))], revision)

    def place(self, placement: NodePlacement) -> None:
        self.put(keys.placement(placement.node), placement)

    def resource_is(self, kind: str, namespace: str, name: str, spec: Mapping[str, Any]) -> None:
        before = self.resource(kind, namespace, name)
        generation = before.generation + 1 if before is not None else 1
        record = StoredResource(kind, namespace, name, f"u-{name}", dict(spec), generation)
        self.put(keys.spec(kind, namespace, name), record)

    def node(self, name: str, site: str = "s1", certificate: str = "") -> None:
        self.resource_is("Node", "", name, {"site": site})
        self.reports(name, certificate or f"crt{name}")

    def reports(self, name: str, certificate: str) -> None:
        inventory: dict[str, Any] = {"arch": "arm64"}
        if certificate:
            inventory |= {"siteEndpoints": [f"{name}:7445"], "siteCertificate": certificate}
        status = NodeStatusRecord(name, "v", "b", inventory, 0)
        self.put(keys.node_status(name), status)


@pytest.fixture
def mirror() -> Mirror:
    """Three nodes of a site and one of another, and a workload that names a Secret."""
    made = Mirror()
    for name in ("a", "b", "c"):
        made.node(name)
    made.node("z", site="s2")
    made.resource_is("Workload", "ns", "web", {"template": TEMPLATE})
    made.resource_is("Secret", "ns", "s", {"data": {"k": "v1"}})
    made.put(keys.revision("w", 1), TemplateRevision("w", 1, TEMPLATE, "d", 0))
    return made


def plan_of(book: RoleBook, node: str) -> plan_pb2.NodePlan:
    plan = plan_pb2.NodePlan()
    book.add_to(plan, node)
    return plan


def settled(mirror: Mirror, book: RoleBook) -> frozenset[str]:
    """Gives what is outdated its new generation, as the leader does, until nothing is."""
    every: frozenset[str] = frozenset()
    for _ in range(5):
        outdated = book.outdated()
        if not outdated:
            return every
        every |= outdated
        for node in outdated:
            before = mirror.placement(node)
            after = replace(
                before, generation=before.generation + 1, roles_digest=book.digest(node)
            )
            mirror.place(after)
    raise AssertionError(f"never settles: {sorted(book.outdated())}")


def test_a_standby_gets_all_that_it_needs_to_start_it(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b", "c")))
    plan = plan_of(book, "b")
    assert [peer.node for peer in plan.roster] == ["a", "c"]
    assert list(plan.roster[0].endpoints) == ["a:7445"] and plan.roster[0].certificate
    (role,) = plan.standby_roles
    assert plan.standby_role_count == 1 and role.primary == "a"
    assert role.assignment.template_json and list(role.assignment.group.members) == ["a", "b", "c"]
    assert [(s.name, dict(s.data)) for s in plan.secrets] == [("s", {"k": b"v1"})]
    primary = plan_of(book, "a")
    assert not primary.standby_roles and [p.node for p in primary.roster] == ["b", "c"]


def test_it_is_the_same_on_every_member(mirror: Mirror) -> None:
    early = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b", "c"), stay("web-1", "a", "c")))
    mirror.place(on("b", stay("web-2", "b", "c"), stay("api-0")))
    late = RoleBook(mirror)
    for node in ("a", "b", "c"):
        assert early.digest(node) == late.digest(node) != ""
    assert early.digest("z") == late.digest("z") == ""


def test_a_witness_gets_no_template_and_no_secret(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    before = (ElectorateRecord(7, ("a", "b")),)
    exclusive = stay("web-0", "a", "b", witnesses=("c",), exclusive=True, before=before)
    mirror.place(on("a", exclusive))
    plan = plan_of(book, "c")
    (role,) = plan.standby_roles
    assert not role.assignment.template_json and not plan.secrets
    group = role.assignment.group
    assert list(group.witnesses) == ["c"] and group.exclusive
    assert [(e.number, list(e.voters)) for e in group.before] == [(7, ["a", "b"])]


def test_all_nodes_of_a_site_are_told_what_was_decided_there(mirror: Mirror) -> None:
    """Also of a replica that none of them has any more, and of what contradicts it."""
    book = RoleBook(mirror)
    settled(mirror, book)
    decision = Override("stopped", "true", "w", "ns", "web-7", stamp=3, node="a", by="operator/ann")
    made = LocalOverride("s1", decision)
    mirror.put(made.key, made.record())
    assert settled(mirror, book) == {"a", "b", "c"}
    for node in ("a", "b", "c"):
        (told,) = plan_of(book, node).overrides
        assert (told.replica, told.stamp, told.by) == ("web-7", 3, "operator/ann")
    assert not plan_of(book, "z").overrides and book.digest("z") == ""
    against = made.contradicted("scaled away")
    mirror.put(made.key, against.record())
    assert settled(mirror, book) == {"a", "b", "c"}
    assert plan_of(RoleBook(mirror), "b").overrides[0].conflict == "scaled away"
    mirror.put(made.key, None)
    assert settled(mirror, book) == {"a", "b", "c"}
    assert book.digest("a") == ""


def test_a_box_that_joined_again_has_no_part_in_what_it_forgot(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    alone = stay("web-0", "a", "b", witnesses=("c",), exclusive=True)
    shared_ = stay("web-1", "a", "b")
    mirror.place(on("a", alone, shared_))
    for node in ("a", "b", "c"):
        assert len(plan_of(book, node).standby_roles) == {"a": 0, "b": 2, "c": 1}[node]
    settled(mirror, book)
    assert alone.group is not None
    for node in ("a", "b", "c"):
        again = IdentityRecord("node", node, joined_epoch=alone.group.number + 1)
        mirror.put(keys.identity("node", node), again)
    assert settled(mirror, book) == {"b", "c"}
    assert [r.assignment.replica for r in plan_of(book, "b").standby_roles] == ["web-1"]
    assert not plan_of(book, "c").standby_roles
    # Its own it would vote on, too; the others it may have as ever.
    assert book.without_forgotten(mirror.placement("a")).assignments == (shared_,)
    following = replace(alone, group=replace(alone.group, number=alone.group.number + 2))
    mirror.place(on("a", following, shared_))
    assert book.without_forgotten(mirror.placement("a")).assignments == (following, shared_)
    assert len(plan_of(book, "b").standby_roles) == 2


def test_what_the_plan_carries_already_is_not_carried_twice(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b")))
    plan = plan_pb2.NodePlan()
    plan.secrets.add(namespace="ns", name="s")
    book.add_to(plan, "b")
    assert len(plan.secrets) == 1 and len(plan.standby_roles) == 1


def test_nobody_speaks_to_another_site(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "z")))
    assert not plan_of(book, "a").roster
    assert not plan_of(book, "z").roster and not plan_of(book, "z").standby_roles


def test_who_cannot_be_heard_is_not_taken_for_dead(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b", "c")))
    mirror.reports("a", "")  # it does not listen
    plan = plan_of(book, "b")
    assert [peer.node for peer in plan.roster] == ["c"] and not plan.standby_roles
    assert book.digest("a") == ""


def test_a_box_that_was_revoked_is_nobody_to_speak_to(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b", "c")))
    mirror.put(keys.identity("node", "a"), IdentityRecord("node", "a", "s1", {"1": 5}))
    settled(mirror, book)
    mirror.put(keys.identity("node", "a"), IdentityRecord("node", "a", "s1", {"2": 9}))
    assert settled(mirror, book) == frozenset(), "a renewal is no news"
    mirror.put(keys.identity("node", "a"), IdentityRecord("node", "a", "s1", revoked_at_ms=1))
    assert settled(mirror, book) == {"a", "b", "c"}
    for node in ("b", "c"):
        plan = plan_of(book, node)
        assert "a" not in [peer.node for peer in plan.roster] and not plan.standby_roles


def test_a_role_that_cannot_be_read_costs_itself_alone(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b"), replace(stay("web-1", "a", "b"), revision=7)))
    for _ in range(2):
        plan = plan_of(book, "b")
        assert [r.assignment.replica for r in plan.standby_roles] == ["web-0"]
        assert plan.standby_role_count == 1
    assert [r.message for r in caplog.records].count(
        "a role is left out: revision 7 of ns/web is not in the store"
    ) == 1


def test_every_change_that_a_plan_says_is_noticed_and_no_other(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    for name in ("a", "b", "c"):
        mirror.place(on(name))
    assert settled(mirror, book) == frozenset()
    mirror.place(on("a", stay("web-0", "a", "b", "c")))
    assert settled(mirror, book) == {"a", "b", "c"}
    mirror.reports("a", "rene")
    assert settled(mirror, book) == {"b", "c"}, "how a peer is reached"
    mirror.resource_is("Secret", "ns", "s", {"data": {"k": "v2"}})
    assert settled(mirror, book) == {"b", "c"}, "a Secret of a role"
    mirror.resource_is("Secret", "ns", "other", {"data": {}})
    mirror.resource_is("Secret", "elsewhere", "s", {"data": {}})
    mirror.resource_is("Workload", "ns", "web", {"template": TEMPLATE, "replicas": 3})
    assert settled(mirror, book) == frozenset()
    mirror.resource_is(
        "Workload", "ns", "web", {"template": TEMPLATE, "sovereignty": {"residency": ["NL"]}}
    )
    assert settled(mirror, book) == {"b", "c"}, "its policy"
    mirror.resource_is("Site", "", "s1", {"country": "NL", "provider": "p"})
    assert settled(mirror, book) == {"b", "c"}, "the facts that the policy rests on"
    mirror.resource_is("Namespace", "", "ns", {"floor": {"residency": ["NL", "DE"]}})
    assert settled(mirror, book) <= {"b", "c"}
    mirror.node("c", site="s2")
    assert settled(mirror, book) == {"a", "b", "c"}, "a node that moved away"
    mirror.place(on("a"))
    assert settled(mirror, book) >= {"b"}
    assert book.digest("b") == ""


def test_facts_and_configs_that_a_role_names_are_noticed(mirror: Mirror) -> None:
    template = {
        "containers": [
            {
                "name": "a",
                "image": "x",
                "env": [
                    {"name": "C", "fact": "node.labels.zone"},
                    {"name": "M", "config": {"name": "mode", "key": "k"}},
                ],
            }
        ]
    }
    mirror.put(keys.revision("w", 1), TemplateRevision("w", 1, template, "e", 0))
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b")))
    settled(mirror, book)
    mirror.resource_is("Config", "ns", "mode", {"data": {"k": "v"}})
    assert settled(mirror, book) == {"b"}
    before = mirror.resource("Node", "", "b")
    assert before is not None
    mirror.put(keys.spec("Node", "", "b"), replace(before, labels={"zone": "ward-3"}))
    assert settled(mirror, book) == {"b"}
    assert dict(plan_of(book, "b").facts) == {"node.labels.zone": "ward-3"}


GROUP = GroupRecord(1 << 16, ("a", "b"))
OTHER_GROUPS = (
    replace(GROUP, number=7),
    replace(GROUP, witnesses=("c",)),
    replace(GROUP, exclusive=True),
    replace(GROUP, on_return="newer"),
    replace(GROUP, stop_after_s=60.0),
    replace(GROUP, forced=True),
    replace(GROUP, before=(ElectorateRecord(3, ("a", "b")),)),
)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 9 << 16},
        {"replica_uid": "other"},
        {"revision": 2},
        {"replaces": "x"},
        {"once": True},
        {"standbys": ("c",)},
        *({"group": group} for group in OTHER_GROUPS),
    ],
    ids=str,
)
def test_all_that_a_role_says_is_in_the_digest(mirror: Mirror, change: dict[str, Any]) -> None:
    book = RoleBook(mirror)
    role = stay("web-0", "a", "b")
    mirror.put(keys.revision("w", 2), TemplateRevision("w", 2, TEMPLATE, "d", 0))
    mirror.place(on("a", role))
    before, plan = book.digest("b"), plan_of(book, "b")
    mirror.place(on("a", replace(role, **change)))
    assert plan_of(book, "b") != plan and book.digest("b") != before


def test_a_generation_that_says_nothing_new_of_the_site_concerns_nobody_else(
    mirror: Mirror,
) -> None:
    book = RoleBook(mirror)
    mirror.place(on("a", stay("web-0", "a", "b")))
    settled(mirror, book)
    assert not book.pending
    mirror.place(on("a", stay("web-0", "a", "b"), stay("alone-0"), roles_digest=book.digest("a")))
    assert list(book._due) == ["a"]
    assert settled(mirror, book) == frozenset()


def test_a_tick_looks_at_so_many_and_says_that_more_are_due(mirror: Mirror) -> None:
    book = RoleBook(mirror)
    for number in range(LOOKS_MAX + 10):
        mirror.place(on(f"n{number}"))
    book.outdated()
    assert book.pending
    book.outdated()
    assert not book.pending
