"""Roles: how they are written, and what they add up to."""

import pytest

from polder.roles import Level, Role, level_in, parse_role


@pytest.mark.parametrize("text", ["admin", "operator:umc-utrecht", "viewer:a"])
def test_text_and_back(text: str) -> None:
    assert str(parse_role(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Admin",
        "admin:",
        "admin:x",
        "operator",
        "operator:",
        "operator:*",
        "operator:A",
        "operator:a b",
        "operator:a\n",
        "operator:a:b",
        " viewer:a",
        "none:a",
        "owner:a",
        "viewer:" + "a" * 64,
        "x" * 1_000_000,
    ],
    ids=lambda text: text[:20],
)
def test_no_roles(text: str) -> None:
    with pytest.raises(ValueError, match="is not a role: admin, operator:NAMESPACE") as caught:
        parse_role(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("roles", "namespace", "level"),
    [
        ([], "a", Level.NONE),
        ([], "", Level.NONE),
        (["admin"], "a", Level.ADMIN),
        (["admin"], "", Level.ADMIN),
        (["viewer:a"], "a", Level.VIEWER),
        (["viewer:a"], "b", Level.NONE),
        (["viewer:a", "operator:a"], "a", Level.OPERATOR),
        (["operator:a", "viewer:a"], "a", Level.OPERATOR),
        (["operator:a", "viewer:b"], "b", Level.VIEWER),
        (["operator:a"], "", Level.VIEWER),  # of what belongs to no namespace: never more
        (["operator:a", "admin"], "b", Level.ADMIN),
    ],
)
def test_levels(roles: list[str], namespace: str, level: Level) -> None:
    assert level_in(map(parse_role, roles), namespace) is level


def test_no_level_gives_no_sight() -> None:
    assert level_in([Role(Level.NONE, "a")], "") is Level.NONE
