"""Nearest first, the same on every member, and spread where nothing is nearer."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.endpoints import ADDRESSES_MAX, addresses, distance_km, nearest
from orchestrator.records import MemberRecord

AMSTERDAM, FRANKFURT, WARSAW, LISBON = (52.4, 4.9), (50.1, 8.7), (52.2, 21.0), (38.7, -9.1)
PLACES = {"eu-west": AMSTERDAM, "eu-central": FRANKFURT, "eu-east": WARSAW, "eu-south": LISBON}


def member(name: str, region: str, place: tuple[float, float] | None = None) -> MemberRecord:
    known = place or PLACES.get(region)
    return MemberRecord(name, region, "1.0.0", (f"{name}:7443",), (f"{name}:7444",), "p", known)


FOUR = [member(f"{region}-{n}", region) for region in PLACES for n in "ab"]


def regions(found: tuple[MemberRecord, ...]) -> list[str]:
    return list(dict.fromkeys(one.region for one in found))


def test_the_own_region_then_by_distance_whatever_the_salt() -> None:
    berlin = (52.5, 13.4)
    for salt in ("n1", "n2", "n3", "n4"):
        found = nearest(FOUR, region="eu-south", coordinates=berlin, salt=salt)
        assert regions(found) == ["eu-south", "eu-central", "eu-east", "eu-west"]
        found = nearest(FOUR, region="elsewhere", coordinates=berlin, salt=salt)
        assert regions(found) == ["eu-central", "eu-east", "eu-west", "eu-south"]
    # A site without coordinates is where its region is.
    assert regions(nearest(FOUR, region="eu-east", coordinates=None, salt="n")) == [
        "eu-east", "eu-central", "eu-west", "eu-south",
    ]  # fmt: skip
    assert 505 < distance_km(WARSAW, berlin) < 530
    assert distance_km(LISBON, LISBON) == 0


def test_a_region_whose_place_nobody_knows_is_last() -> None:
    unknown = replace(member("x", "eu-new"), coordinates=None)
    found = nearest([unknown, *FOUR], region="", coordinates=AMSTERDAM, salt="n")
    assert found[-1] is unknown
    assert nearest([unknown, *FOUR], region="eu-new", coordinates=None, salt="n")[0] is unknown


def test_nodes_spread_where_nothing_is_nearer() -> None:
    firsts: Counter[str] = Counter()
    heirs: Counter[str] = Counter()
    three = [member(f"m{n}", "eu-west") for n in range(4)]
    for n in range(4000):
        order = nearest(three, region="eu-west", coordinates=None, salt=f"node-{n}")
        firsts[order[0].name] += 1
        if order[0].name == "m0":
            heirs[order[1].name] += 1
    assert set(firsts) == {"m0", "m1", "m2", "m3"} and min(firsts.values()) > 900
    assert set(heirs) == {"m1", "m2", "m3"} and min(heirs.values()) > 0.8 * max(heirs.values())
    placeless = [replace(one, coordinates=None) for one in FOUR]
    asked = (nearest(placeless, region="", coordinates=None, salt=f"n{n}") for n in range(2000))
    by_region = Counter(order[0].region for order in asked)
    assert min(by_region.values()) > 400


records = st.lists(
    st.builds(
        MemberRecord,
        name=st.text("abc", min_size=1, max_size=3),
        region=st.sampled_from(["r1", "r2", "r3"]),
        version=st.just("1"),
        endpoints=st.lists(st.sampled_from(["a:1", "b:1", "c:1"]), max_size=3).map(tuple),
        join_endpoints=st.just(()),
        peer_endpoint=st.just(""),
        coordinates=st.none() | st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
    ),
    max_size=8,
    unique_by=lambda one: one.name,
)
somewhere = st.none() | st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@given(
    found=records, order=st.randoms(), at=somewhere, region=st.sampled_from(["", "r1", "r9"]),
    salt=st.text(max_size=4),
)  # fmt: skip
def test_the_order_depends_on_who_asks_and_the_records_alone(
    found, order, at, region, salt
) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(found)
    order.shuffle(shuffled)
    one = nearest(found, region=region, coordinates=at, salt=salt)
    assert one == nearest(shuffled, region=region, coordinates=at, salt=salt)
    assert sorted(m.name for m in one) == sorted(m.name for m in found)
    own = [m.region == region for m in one]
    assert own == sorted(own, reverse=True)
    dialled = addresses(one)
    assert len(set(dialled)) == len(dialled) <= ADDRESSES_MAX
    assert set(dialled) == {address for m in found for address in m.endpoints}


@given(found=records, salt=st.text(max_size=4))
def test_a_member_that_goes_changes_nothing_between_the_others(found, salt) -> None:  # type: ignore[no-untyped-def]
    placed = [replace(m, coordinates=PLACES["eu-west"]) for m in found]
    whole = nearest(placed, region="r1", coordinates=LISBON, salt=salt)
    for gone in placed:
        rest = nearest(
            [m for m in placed if m is not gone], region="r1", coordinates=LISBON, salt=salt
        )
        assert rest == tuple(m for m in whole if m is not gone)


def test_many_addresses_leave_nobody_out_and_shared_ports_are_one() -> None:
    shared = [replace(member(f"m{n}", "r"), endpoints=("10.0.0.1:7443",)) for n in range(3)]
    assert addresses(shared) == ("10.0.0.1:7443",)
    many = [
        replace(member(f"m{n}", "r"), endpoints=tuple(f"10.{n}.0.{i}:1" for i in range(4)))
        for n in range(20)
    ]
    found = addresses(many)
    assert len(found) == ADDRESSES_MAX
    assert {f"10.{n}.0.0:1" for n in range(20)} <= set(found)
    assert addresses([member("a", "r")], joining=True) == ("a:7444",)
