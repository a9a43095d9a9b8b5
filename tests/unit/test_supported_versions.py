"""Which versions of members, edgectl and agents are supported together."""

import pytest

from polder.skew import Minor, minor_of, supported, warnings


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("0.4.2", Minor(0, 4)),
        ("1.10.0-3", Minor(1, 10)),
        ("1.2-1", Minor(1, 2)),
        ("0.4.2+local", Minor(0, 4)),
        ("0+source", None),
        ("test", None),
        ("", None),
    ],
)
def test_the_minor_version_of_a_release(version: str, wanted: Minor | None) -> None:
    assert minor_of(version) == wanted


@pytest.mark.parametrize(
    ("members", "edgectl", "agents"),
    [
        (["0.5.0"], "0.4 to 0.6", "0.3 to 0.5"),
        (["0.5.0", "0.5.7"], "0.4 to 0.6", "0.3 to 0.5"),
        (["0.5.0", "0.6.0"], "0.5 to 0.6", "0.4 to 0.5"),  # a rolling upgrade
        (["0.1.0"], "0.0 to 0.2", "0.0 to 0.1"),
        (["1.0.0"], "1.0 to 1.1", "1.0"),
        (["0.5.0", "0+source"], "0.4 to 0.6", "0.3 to 0.5"),
        (["0.4.0", "0.6.0"], "0.5", "0.4"),  # not supported themselves
        (["0.3.0", "0.6.0"], "None", "None"),
        (["0.9.0", "1.0.0"], "None", "None"),
        (["0+source"], "None", "None"),
        ([], "None", "None"),
    ],
)
def test_what_is_supported_beside_members(members: list[str], edgectl: str, agents: str) -> None:
    found = supported(members)
    assert (str(found.edgectl), str(found.agents)) == (edgectl, agents)
    assert found.members == found.edgectl


def test_what_is_supported_together_is_not_warned_about() -> None:
    members = {"a": "0.5.1", "b": "0.6.0"}
    for edgectl in ("0.5.0", "0.6.9"):
        assert warnings(edgectl, members, {"0.5.0": 3, "0.4.2": 9000}) == []
    assert warnings("0.5.0", {"a": "0.5.0"}, {}) == []


@pytest.mark.parametrize(
    ("edgectl", "members", "agents", "said"),
    [
        ("0.1.0", {"a": "0.3.0"}, {}, "edgectl 0.1.0 and member a (0.3.0) are too far apart: "
         "upgrade edgectl"),
        ("1.0.0", {"a": "0.9.0"}, {}, "too far apart: upgrade the orchestrator"),
        ("0.5.0", {"a": "0.6.0", "b": "0.7.0"}, {}, "member b (0.7.0)"),
        ("dev", {"a": "0.3.0"}, {}, "edgectl dev is not a release"),
        ("0.5.0", {"a": "0.4.0", "b": "0.6.0"}, {}, "member a runs 0.4.0 and member b 0.6.0"),
        ("0.5.0", {"a": "0.5.0", "b": "0+source"}, {}, "of member b the version is not"),
        ("0.5.0", {"a": "0.5.0"}, {"0.6.0": 2}, "agents are supported at 0.3 to 0.5, and there "
         "are 2 at 0.6.0 (upgrade the members first)"),
        ("0.5.0", {"a": "0.5.0", "b": "0.6.0"}, {"0.6.0": 1}, "upgrade the members first"),
        ("0.5.0", {"a": "0.5.0"}, {"0.2.9": 7}, "7 at 0.2.9 (edgectl agent upgrade)"),
        ("0.5.0", {"a": "0.5.0"}, {"": 4, "0+source": 1}, "are 1 at 0+source (not a "
         "release's version)"),
    ],
)  # fmt: skip
def test_what_is_not_is_warned_about_once(
    edgectl: str, members: dict[str, str], agents: dict[str, int], said: str
) -> None:
    (warning,) = warnings(edgectl, members, agents)
    assert said in warning


def test_a_warning_for_each_kind_of_program() -> None:
    members, agents = {"a": "0.4.0", "b": "0.6.0"}, {"0.6.0": 4, "0.1.0": 5, "0.4.0": 1}
    of_members, of_edgectl, of_agents = warnings("0.9.0", members, agents)
    assert "member a" in of_members and "edgectl 0.9.0" in of_edgectl
    assert "5 at 0.1.0 (edgectl agent upgrade)" in of_agents
    assert "4 at 0.6.0 (upgrade the members first)" in of_agents
    assert "0.4.0" not in of_agents
