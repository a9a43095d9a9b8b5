"""Who has a replica, as each node of the site would tell an operator."""

from agent.domain.site.known import Known
from agent.domain.site.machine import SiteMachine
from tests.unit.site_lab import E1, KEY, Lab, group, lab

ABC = group("a", "b", "c")


def told(site: Lab, node: str) -> Known:
    return site.boxes[node].machine.known(site.now)[KEY]


def test_before_a_plan_nothing_is_known() -> None:
    assert not SiteMachine("a").known(0.0)


def test_all_nodes_name_the_holder() -> None:
    site = lab(ABC)
    site.start()
    site.run(10)
    for node in "abc":
        assert told(site, node) == Known("a", E1, ready=True)


def test_who_went_silent_is_named_until_somebody_takes_over() -> None:
    site = lab(ABC)
    site.start()
    site.run(10)
    for node in "bc":
        site.set_unable(node, "ImageMissing")
    site.kill("a")
    site.run(10)
    assert told(site, "b").holder == "a"  # it had it last
    site.set_unable("c", "")
    site.run(10)
    assert told(site, "b").holder == told(site, "c").holder == "c"
    assert told(site, "b").epoch > E1


def test_only_the_holder_of_an_exclusive_one_has_a_lease() -> None:
    site = lab(group("a", "b", "c", exclusive=True))
    site.start()
    site.run(30)
    held = told(site, "a")
    assert held.holder == "a" and held.lease_left_s is not None and 0 < held.lease_left_s <= 3.0
    for node in "bc":
        found = told(site, node)
        assert (found.holder, found.lease_left_s) == ("a", None)
        assert found.epoch == held.epoch
