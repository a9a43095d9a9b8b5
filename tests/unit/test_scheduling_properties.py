"""Properties of `plan()` and `explain()` in drawn worlds, against the reference evaluator."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling.explain import explain
from orchestrator.scheduling.plan import plan
from orchestrator.scheduling.policies import Policies
from orchestrator.scheduling.reasons import merged
from orchestrator.scheduling.snapshot import (
    Mode,
    Namespace,
    Quota,
    Resources,
    Site,
    Snapshot,
    Template,
    Workload,
)
from polder.manifest import Placement, Spread, Taint, Toleration
from polder.manifest.facts import (
    Certification,
    Energy,
    Owner,
    ProviderAssurance,
    ProviderSpec,
    SealLevels,
    SiteSpec,
)
from polder.manifest.placement import Affinity, Failover, LabelExpression, Near
from polder.manifest.policy import AssuranceMinimum, EnergyLimits, SealMinimum, SovereigntySpec
from polder.sovereignty import analyse_provider, evaluate, site_facts
from tests.sim.sim_scheduler import permuted
from tests.unit.reference_scheduling import faults, refusals
from tests.unit.scheduling_world import World, box

NOW = 1_800_000_000.0  # 2027-01-15
SEEDS = st.integers(0, 2**32)


class Drawn:
    """A world from a seed: every feature of placement, in small."""

    def __init__(self, seed: int, *, plain: bool = False) -> None:
        self.dice = random.Random(seed)
        self.plain = plain
        self.world = World(now=NOW)
        self._sites()
        for number in range(self.dice.randint(1, 12)):
            self._node(f"n{number}")
        self.world.namespaces = {"ns": self.namespace()}
        for number in range(self.dice.randint(1, 7)):
            self.want(f"w{number}")

    def maybe(self, share: float) -> bool:
        return self.dice.random() < share

    def _sites(self) -> None:
        dice = self.dice
        for name, country in (("s1", "NL"), ("s2", "DE"), ("s3", "US"), ("s4", "FR")):
            if self.maybe(0.1):
                continue  # not declared
            profile = None
            if self.maybe(0.9):
                owner = Owner(
                    holder="X", country=dice.choice(("NL", "US", "AE")),
                    capital_percent=dice.choice((20.0, 30.0, 60.0)), votes_percent=20.0,
                )  # fmt: skip
                until = dice.choice(("2026-01-01", "2030-01-01"))
                provider = ProviderSpec(
                    legal_name=name,
                    seat_country=country,
                    head_office=dice.choice(("", country)),
                    governing_law=country,
                    owners=dice.choice((None, (), (owner,))),
                    owners_complete=self.maybe(0.8),
                    exposed_to_laws=dice.choice((None, (), ("US-CLOUD-ACT",))),
                    subcontractors=dice.choice((None, ())),
                    certifications=dice.choice(
                        (None, (Certification(scheme="C5", issuer="BSI", valid_until=until),))
                    ),
                    gaiax_label=dice.choice((None, 0, 2)),
                    seal=SealLevels(sov_2=dice.choice((None, 1, 3))),
                    assurance=ProviderAssurance(default=dice.choice(("self", "audited"))),
                )
                profile = analyse_provider(f"p{name}", provider)
            spec = SiteSpec(
                provider=f"p{name}",
                country=country,
                region=dice.choice(("eu", "us")),
                tenure=dice.choice(("", "owned")),
                admin_countries=dice.choice((None, (country,))),
                support_countries=dice.choice((None, (country,))),
                energy=Energy(
                    pue=dice.choice((None, 1.2, 1.5, 1.8)),
                    carbon_intensity_g_per_kwh=dice.choice((None, 20.0, 400.0)),
                ),
            )
            known = self.maybe(0.8)
            self.world.sites[name] = Site(
                name,
                site_facts(name, spec, profile),
                dice.uniform(40, 60) if known else None,
                dice.uniform(0, 20) if known else None,
            )

    def _node(self, name: str) -> None:
        dice = self.dice
        site = dice.choice(("s1", "s2", "s3", "s4"))
        facts = self.world.sites.get(site)
        node = box(
            name,
            site,
            country=facts.facts.country if facts else "",
            provider=facts.facts.provider_name if facts else "",
            region="eu" if site in ("s1", "s2") else "us",
            arch=dice.choice(("arm64", "amd64")),
            labels={"rack": dice.choice("123")} if self.maybe(0.8) else {},
            taints=(self.taint(),) if self.maybe(0.1) else (),
            unschedulable=self.maybe(0.05),
            not_ready=self.maybe(0.05),
            cordoned="the site is cordoned" if self.maybe(0.05) else "",
            host_paths=dice.choice(((), ("/dev",), ("/dev/x", "/srv"))),
            allocatable=Resources(
                dice.choice((500, 1000, 2000)), dice.choice((1, 2)) << 30, 10 << 30,
                {"polder.eu/gpu": dice.randrange(3)},
            ),
        )  # fmt: skip
        if self.maybe(0.05):
            node = replace(node, allocatable=Resources(-5, 1 << 30, 1 << 30))
        self.world.add(node)

    def taint(self) -> Taint:
        return Taint("t", self.dice.choice(("NoSchedule", "NoExecute")))

    def namespace(self) -> Namespace:
        quota = None
        if not self.plain and self.maybe(0.2):
            quota = Quota(replicas=self.dice.randrange(8), cpu_millis=self.dice.randrange(3000))
        return Namespace(
            "ns",
            floor=self.policy() if self.maybe(0.2) else SovereigntySpec(),
            quota=quota,
            pack=self.maybe(0.4),
            allow=frozenset({"hostPath"} if self.maybe(0.8) else ()),
        )

    def want(self, name: str, count: int | None = None) -> None:
        dice = self.dice
        request = Resources(
            dice.choice((0, 100, 300, 450)), dice.choice((0, 128 << 20, 512 << 20)), 0,
            {"polder.eu/gpu": 1} if self.maybe(0.1) else {},
        )  # fmt: skip
        ports = ((8080, "TCP"),) if self.maybe(0.1) else ()
        paths = ("/dev/x",) if self.maybe(0.15) else ()
        data = ("data",) if not self.plain and self.maybe(0.1) else ()
        for index in range(2 if data else 0):
            key = ("ns", f"{name}-{index}")
            self.world.volumes[key] = dice.choice([*self.world.nodes, "gone"])
        self.world.want(
            name,
            Template(
                request,
                ports,
                host_paths=paths,
                local_volumes=data,
                demands=("hostPath",) if paths else (),
            ),
            count=dice.choice((1, 1, 2, 5, 9)) if count is None else count,
            mode=dice.choice((Mode.REPLICAS,) * 4 + (Mode.PER_SITE, Mode.PER_NODE)),
            priority=0 if self.plain else dice.randrange(3),
            labels={"app": dice.choice("ab")},
            placement=self.placement(),
            sovereignty=self.policy() if self.maybe(0.5) else SovereigntySpec(),
            failover=Failover(dice.randrange(3), dice.choice(("site", "region", "any"))),
            created_at_ms=len(self.world.workloads),
        )

    def placement(self) -> Placement:
        dice = self.dice
        affinity: tuple[Affinity, ...] = ()
        apart: tuple[Affinity, ...] = ()
        if not self.plain and self.maybe(0.2):
            affinity = (self.rule(),)
        if not self.plain and self.maybe(0.25):
            apart = (self.rule(),)
        operator = dice.choice(("In", "NotIn", "Gt", "Lt"))
        rack = LabelExpression("rack", operator, (dice.choice("123"),))
        spread = Spread(dice.choice(("node", "site", "country")), dice.randint(1, 2))
        return Placement(
            arch=(dice.choice(("arm64", "amd64")),) if self.maybe(0.2) else (),
            node_selector={"rack": dice.choice("123")} if self.maybe(0.1) else {},
            match_expressions=(rack,) if self.maybe(0.15) else (),
            near=Near("s1", dice.choice((1.0, 5.0, 15.0))) if self.maybe(0.1) else None,
            tolerations=(Toleration("t"),) if self.maybe(0.2) else (),
            spread=spread if self.maybe(0.3) else None,
            affinity=affinity,
            anti_affinity=apart,
            prefer_green=self.maybe(0.1),
        )

    def rule(self) -> Affinity:
        by = self.dice.choice(("node", "site"))
        return Affinity({"app": self.dice.choice("ab")}, by, required=self.maybe(0.8))

    def policy(self) -> SovereigntySpec:
        dice = self.dice
        seal = SealMinimum(sov_2=dice.choice((1, 2))) if self.maybe(0.2) else SealMinimum()
        energy = (
            EnergyLimits(pue_max=dice.choice((1.2, 1.4, 1.6)))
            if self.maybe(0.2)
            else EnergyLimits()
        )
        assured = AssuranceMinimum()
        if self.maybe(0.2):
            level = dice.choice(("self", "audited"))
            assured = AssuranceMinimum(
                **{dice.choice(("default", "certifications", "seal")): level}
            )
        return SovereigntySpec(
            residency=dice.choice((None, None, ("EU",), ("NL",), ("DE", "FR"))),
            forbid_laws=("US-CLOUD-ACT",) if self.maybe(0.15) else (),
            ownership=dice.choice(("", "", "", "eu-controlled")),
            gaiax_label=dice.choice((None, None, None, 1)),
            seal=seal,
            certifications=("C5",) if self.maybe(0.15) else (),
            energy=energy,
            assurance=assured,
        )  # fmt: skip


@given(seed=SEEDS, steps=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_nothing_that_is_placed_violates_the_reference(seed: int, steps: int) -> None:
    drawn = Drawn(seed)
    for step in range(steps):
        before = drawn.world.snapshot()
        decided = drawn.world.step()
        found = list(faults(before, decided, NOW))
        assert not found, (step, found)
        drawn.world.obey()
        node = drawn.dice.choice(sorted(drawn.world.nodes))
        drawn.world.change(node, draining=drawn.maybe(0.3), unschedulable=drawn.maybe(0.2))
        drawn.want(f"x{step}")


@given(seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_planning_an_unchanged_world_again_changes_nothing(seed: int) -> None:
    """Whoever follows a workload of lower priority may preempt in the next plan: left out."""
    world = Drawn(seed).world
    if any(workload.placement.affinity for workload in world.workloads.values()):
        for name in [workload.name for workload in world.workloads.values()]:
            world.want(name, priority=0)
    world.step()
    again = world.step()
    assert again.changes_nothing, again
    world.obey()
    world.settle()


@given(seed=SEEDS, order=st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_order_of_nodes_and_workloads_changes_nothing(seed: int, order: random.Random) -> None:
    snapshot = Drawn(seed).world.snapshot()
    assert plan(permuted(snapshot, order), NOW) == plan(snapshot, NOW)


@given(seed=SEEDS, tie=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_seed_decides_ties_and_not_who_may_go_where(seed: int, tie: int) -> None:
    snapshot = Drawn(seed).world.snapshot()
    assert not list(faults(snapshot, plan(snapshot, NOW, tie), NOW))


@given(seed=SEEDS, kind=st.sampled_from(("arch", "selector", "policy", "near", "expression")))
@settings(max_examples=100, deadline=None)
def test_a_constraint_more_never_adds_a_node(seed: int, kind: str) -> None:
    drawn = Drawn(seed)
    snapshot = drawn.world.snapshot()
    for workload in snapshot.workloads:
        tighter = tightened(workload, kind)
        before, after = fitting(snapshot, workload), fitting(snapshot, tighter)
        assert after <= before


def tightened(workload: Workload, kind: str) -> Workload:
    where = workload.placement
    if kind == "policy":
        stricter = merged(workload.sovereignty, SovereigntySpec(residency=("NL",), gaiax_label=1))
        return replace(workload, sovereignty=stricter)
    if kind == "arch":
        arch = tuple(a for a in where.arch or ("arm64", "amd64") if a == "arm64") or ("none",)
        return replace(workload, placement=replace(where, arch=arch))
    if kind == "selector":
        more = {**where.node_selector, "zone": "a"}
        return replace(workload, placement=replace(where, node_selector=more))
    if kind == "near":
        limit = where.near.rtt_ms_max / 2 if where.near else 5.0
        return replace(workload, placement=replace(where, near=Near("s1", limit)))
    more_rules = (*where.match_expressions, LabelExpression("rack", "Lt", ("3",)))
    return replace(workload, placement=replace(where, match_expressions=more_rules))


def fitting(snapshot: Snapshot, workload: Workload) -> set[str]:
    found = explain(snapshot, workload, NOW)
    return {verdict.node for verdict in found.verdicts if not verdict.reasons}


@given(seed=SEEDS)
@settings(max_examples=120, deadline=None)
def test_explain_and_plan_never_disagree(seed: int) -> None:
    """Alone in its world, a workload gets a node exactly if some node fits; and after a plan, what
    is still without a node has none that fits."""
    drawn = Drawn(seed, plain=True)
    world = drawn.world
    for workload in list(world.workloads.values()):
        lone = replace(
            world.snapshot(), workloads=(replace(workload, count=1, mode=Mode.REPLICAS),)
        )
        decided = plan(lone, NOW)
        found = explain(lone, lone.workloads[0], NOW)
        assert (len(decided.place) == 1) == (found.fitting > 0 and not found.blockers)
        assert {p.node for p in decided.place} <= fitting(lone, lone.workloads[0])
    decided = world.step()
    after = world.snapshot()
    for item in decided.explanations:
        workload = next(w for w in after.workloads if w.name == item.workload)
        if item.code == "Unschedulable" and workload.mode is Mode.REPLICAS:
            found = explain(after, workload, NOW)
            assert found.fitting == 0, (item, fitting(after, workload))


@given(seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_explain_gives_the_reasons_of_the_reference(seed: int) -> None:
    """A node without neighbours or a lack of room fits exactly if the reference says so."""
    drawn = Drawn(seed, plain=True)
    before = drawn.world.snapshot()
    for workload in before.workloads:
        free = replace(workload, placement=replace(workload.placement, spread=None))
        uid = free.uid
        asked = before.templates[(uid, 1)]
        bare = Template(host_paths=asked.host_paths, demands=asked.demands)
        world = replace(before, templates={(uid, 1): bare})
        fits = fitting(world, free)
        for node in before.nodes:
            refused = list(refusals(before, free, node, NOW))
            assert (node.name in fits) == (not refused), (node.name, refused)


@given(seed=SEEDS)
@settings(max_examples=150, deadline=None)
def test_masks_of_single_demands_add_up_to_the_whole_policy(seed: int) -> None:
    drawn = Drawn(seed)
    facts = [site.facts for site in drawn.world.sites.values()]
    # Twins that differ in what only some demands look at.
    for one in list(facts):
        pue, admins = drawn.dice.choice((None, 1.3, 1.7)), drawn.dice.choice((None, ("US",)))
        facts.append(replace(one, site="twin", energy=Energy(pue=pue)))
        facts.append(replace(one, site="other", admin_countries=admins))
    policies = Policies(facts, NOW, lambda mask: mask)
    for _ in range(5):
        floor, policy = drawn.policy(), drawn.policy()
        mask = policies.admitted(policy, floor)
        whole = merged(floor, policy)
        expected = [not evaluate(whole, one, NOW) for one in facts]
        assert (list(mask) if mask is not None else [True] * len(facts)) == expected


@pytest.mark.parametrize("count", [0, 1, 3])
def test_zero_nodes(count: int) -> None:
    world = World()
    world.want("web", count=count, failover=Failover(1))
    decided = plan(world.snapshot(), NOW)
    assert not decided.place and len(decided.explanations) == (count > 0)
    assert explain(world.snapshot(), world.workloads["uid-web"], NOW).nodes == 0
