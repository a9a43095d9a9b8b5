"""Who may do what at a site: by role as at the orchestrator, or by a break-glass grant."""

import pytest

from agent.local.callers import VERBS, Caller
from agent.local.moments import Moment
from agent.local.tries import ADDRESSES_MAX, OF_NETWORK, Tries, address_of, network_of
from polder.local_access import ACTIONS, Grant
from polder.roles import parse_role


def person(*roles: str) -> Caller:
    return Caller("operator/ann", "1", 100.0, tuple(parse_role(role) for role in roles))


def holder(allow: str, namespace: str = "", workload: str = "") -> Caller:
    grant = Grant(
        trust_domain="polder.internal",
        site="s1",
        namespace=namespace,
        workload=workload,
        allow=tuple(allow.split(",")),
        purpose="ward 3 floods",
        serial="ab" * 16,
        issued_at_ms=0,
        expires_at_ms=1000,
    )
    return Caller("break-glass/" + "ab" * 16, "ab" * 16, 1.0, grant=grant)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("viewer:umc", set()),
        ("operator:umc", {"exec", "stop", "start", "restart", "move"}),
        ("admin", VERBS),
        ("operator:city", set()),
    ],
)
def test_a_role_allows_here_what_it_allows_elsewhere(role: str, allowed: set[str]) -> None:
    caller = person(role)
    found = {
        verb for verb in VERBS if caller.may(verb, "" if "freeze" in verb else "umc", "triage")
    }
    assert found == allowed
    for verb in VERBS:
        told = caller.objection(verb, "" if "freeze" in verb else "umc", "triage")[0]
        assert bool(told) == (verb not in allowed)


def test_everything_that_a_token_can_allow_is_a_verb() -> None:
    assert set(ACTIONS) - {"read"} == VERBS


def test_a_grant_is_for_its_actions_and_its_target_alone() -> None:
    caller = holder("stop,exec", "umc", "triage")
    assert caller.may("stop", "umc", "triage") and caller.reads("umc", "triage")
    assert not caller.may("start", "umc", "triage")
    assert not caller.may("stop", "umc", "billing") and not caller.reads("umc", "billing")
    assert caller.reads_in("umc") and not caller.reads_in("city")
    message, hint = caller.objection("start", "umc", "triage")
    assert "not for start" in message and "ward 3 floods" in hint


def test_everybody_who_is_in_sees_the_node() -> None:
    assert person("viewer:umc").reads("") and holder("stop", "umc").reads("")


def test_what_is_left_of_a_credential() -> None:
    assert person("admin").left_s(40.0) == 60.0
    assert person("admin").left_s(140.0) is None  # it was let in although it had expired


@pytest.mark.parametrize(
    ("at", "heard_at", "good"),
    [
        (40.0, 40.0, True),
        (140.0, 140.0, False),  # an orchestrator is heard, or the autonomy is over
        (140.0, 90.0, True),  # nobody could get another one since
        (140.0, 101.0, False),
    ],
)
def test_a_certificate_is_good_for_as_long_as_it_would_be_let_in(
    at: float, heard_at: float, good: bool
) -> None:
    assert person("admin").good(Moment(at, heard_at)) == good


def test_a_token_ends_when_it_says() -> None:
    assert holder("stop").good(Moment(0.5, 0.0)) and not holder("stop").good(Moment(1.0, 0.0))


# --- tries ----------------------------------------------------------------------------------------


def test_so_many_tries_in_a_minute_and_then_a_wait() -> None:
    tries = Tries(3)
    for at in (0.0, 10.0, 20.0):
        assert tries.wait_s("a", at) == 0
        tries.note("a", at)
    assert tries.wait_s("a", 30.0) == 30.0
    assert tries.wait_s("b", 30.0) == 0
    assert tries.wait_s("a", 60.0) == 0  # the first one is forgotten
    tries.note("a", 60.0)
    assert tries.wait_s("a", 61.0) == 9.0


def test_a_try_that_was_right_does_not_count() -> None:
    tries = Tries(1)
    tries.note("a", 0.0)
    tries.forgive("a")
    tries.forgive("never seen")
    assert tries.wait_s("a", 1.0) == 0


def test_of_very_many_addresses_the_oldest_is_forgotten() -> None:
    tries = Tries(1)
    tries.note("first", 0.0)
    for number in range(ADDRESSES_MAX):
        tries.note(str(number), 1.0)
    assert tries.wait_s("first", 2.0) == 0
    assert tries.wait_s("0", 2.0) > 0
    assert len(tries._times) == ADDRESSES_MAX


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:51234", "10.0.0.7"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:51234", "10.0.0.7"),
        ("ipv6:[::1]:51234", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1"),
        ("unix:", ""),
    ],
)
def test_an_address_is_that_of_the_host(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_neighbour_in_the_same_network_does_not_lock_the_others_out_at_once() -> None:
    tries = Tries(3)
    for _ in range(3):
        tries.note("2001:db8:7:8::1", 0.0)
    assert tries.wait_s("2001:db8:7:8::1", 1.0) == 59.0
    assert tries.wait_s("2001:db8:7:8::9", 1.0) == 0


def test_who_has_a_whole_network_gets_no_more_tries_for_each_address() -> None:
    tries = Tries(3)
    for number in range(3 * OF_NETWORK):
        assert tries.wait_s(f"2001:db8:7:8::{number}", 1.0) == 0
        tries.note(f"2001:db8:7:8::{number}", 1.0)
    assert tries.wait_s("2001:db8:7:8::ffff", 2.0) == 59.0
    assert tries.wait_s("2001:db8:7:9::1", 2.0) == 0
    tries.forgive("2001:db8:7:8::0")
    assert tries.wait_s("2001:db8:7:8::ffff", 2.0) == 0


def test_ipv4_addresses_are_hosts_of_their_own() -> None:
    assert network_of("10.0.0.7") == "10.0.0.7" and network_of("") == ""
    assert network_of("2001:db8:7:8::1") == network_of("2001:db8:7:8:ffff::9")
    assert network_of("2001:db8:7:8::1") != network_of("2001:db8:7:9::1")
