"""The observer of exclusive replicas sees what it is there for."""

import urllib.error
import urllib.request

import pytest

from devcluster.register import Register, Tenures, Write, parse


def written(stay: str, epoch: int, *times: float, replica: str = "one-0") -> list[Write]:
    return [Write(replica, stay, f"node-{stay}", epoch, at) for at in times]


def register(*groups: list[Write]) -> Tenures:
    made = Tenures()
    for group in groups:
        for write in group:
            made.write(write)
    return made


def test_one_after_the_other_is_well() -> None:
    seen = register(written("a", 5, 1.0, 1.1, 1.2), written("b", 6, 1.3, 1.4))
    assert seen.overlaps() == [] and seen.refused("one-0") == 0
    assert [(t.node, t.epoch, t.first_at, t.last_at) for t in seen.of("one-0")] == [
        ("node-a", 5, 1.0, 1.2),
        ("node-b", 6, 1.3, 1.4),
    ]


def test_two_at_once_are_found_though_the_late_one_is_refused() -> None:
    seen = register(written("a", 5, 1.0), written("b", 6, 1.3), written("a", 5, 1.5))
    (found,) = seen.overlaps()
    assert (found.nodes, found.epochs, found.seconds) == (("node-a", "node-b"), (5, 6), 0.0)
    assert seen.refused("one-0") == 1
    (found,) = register(written("a", 5, 1.0, 1.5), written("b", 6, 1.3, 1.6)).overlaps()
    assert found.seconds == pytest.approx(0.2)
    assert register(written("a", 5, 1.0), written("b", 6, 1.0)).overlaps(), "began together"


def test_a_write_that_comes_late_is_no_overlap() -> None:
    seen = register(written("a", 5, 1.0, 1.1), written("b", 6, 1.3), written("a", 5, 1.2))
    assert seen.overlaps() == [] and seen.refused("one-0") == 1


def test_replicas_are_apart() -> None:
    seen = register(written("a", 5, 1.0, 2.0), written("b", 6, 1.5, 1.6, replica="two-0"))
    assert seen.overlaps() == []


def test_an_epoch_that_rises_is_accepted_and_the_former_refused() -> None:
    seen = register(written("a", 5, 1.0), written("a", 7, 1.1))
    assert seen.write(Write("one-0", "b", "node-b", 6, 1.2)) is False
    assert seen.write(Write("one-0", "a", "node-a", 7, 1.3)) is True


def test_it_is_served() -> None:
    with Register("127.0.0.1") as served:
        url = f"http://{served.endpoint}/write?replica=r&stay=s&node=n&at=1.5&epoch="
        with urllib.request.urlopen(url + "8") as answer:
            assert answer.status == 200
        for wrong, code in (("7", 409), ("x", 400), ("", 400)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + wrong)
            assert refused.value.code == code
        (tenure,) = served.of("r")
        assert (tenure.epoch, tenure.accepted, tenure.refused) == (8, 1, 1)


@pytest.mark.parametrize("path", ["/write", "/write?replica=r&stay=s&node=n&epoch=1&at=now"])
def test_nonsense_is_told(path: str) -> None:
    with pytest.raises(ValueError):
        parse(path)
