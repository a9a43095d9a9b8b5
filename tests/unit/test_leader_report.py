"""Events of many nodes at once."""

from orchestrator.leader_report import NODES_ONE_BY_ONE_MAX, Crowds
from orchestrator.scheduling.steer import Tell


def told(count: int, first: int = 0, reason: str = "NodeSilent") -> list[Tell]:
    return [Tell("Node", "", f"n{first + i}", True, reason, "why") for i in range(count)]


def test_a_few_nodes_are_told_one_by_one() -> None:
    crowds = Crowds(lambda: 0.0)
    assert list(crowds.take(told(3))) == told(3)


def test_of_thousands_the_first_are_told_and_then_how_many_there_were() -> None:
    now = [100.0]
    crowds = Crowds(lambda: now[0])
    said = []
    for second in range(10):
        said += list(crowds.take(told(300, second * 300)))
        said += list(crowds.take(told(5, second * 5, "NodeReady")))
        now[0] += 1.0
    assert len(said) == 2 * NODES_ONE_BY_ONE_MAX
    silent, ready = crowds.take([])
    assert (silent.kind, silent.name, silent.reason) == (
        "Installation",
        "everything",
        "NodesSilent",
    )
    assert silent.message == "2980 more nodes within 10 s, such as n20, n21, n22: why"
    assert ready.message.startswith("30 more nodes")
    assert not list(crowds.take([]))
    assert list(crowds.take(told(1))) == told(1)


def test_other_words_are_told_as_they_are() -> None:
    crowds = Crowds(lambda: 0.0)
    many = [Tell("Node", "", f"n{i}", True, "NodeFlapping", "why") for i in range(99)]
    assert list(crowds.take(many)) == many
