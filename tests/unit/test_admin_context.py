"""admin.yaml learns of other members, and nothing else in it changes."""

import json

import pytest

from orchestrator.admin_context import with_endpoints
from orchestrator.installation import context_file

TEXT = context_file(
    endpoints=("a:1",),
    trust_domain="polder.example",
    roots_pem=b"root",
    name="admin",
    chain_pem=b"chain",
    private_key_pem=b"key",
    namespace="default",
)


def endpoints(text: str) -> list[str]:
    found: list[str] = json.loads(text)["clusters"][0]["cluster"]["endpoints"]
    return found


def test_what_is_missing_is_added_at_the_end() -> None:
    text = with_endpoints(TEXT, ("b:1", "a:1", "c:1"))
    assert endpoints(text) == ["a:1", "b:1", "c:1"]
    before, after = json.loads(TEXT), json.loads(text)
    for body in (before, after):
        body["clusters"][0]["cluster"].pop("endpoints")
    assert before == after


def test_what_is_known_changes_nothing() -> None:
    assert with_endpoints(TEXT, ("a:1",)) == ""
    assert with_endpoints(TEXT, ()) == ""
    assert with_endpoints(with_endpoints(TEXT, ("b:1",)), ("a:1", "b:1")) == ""


@pytest.mark.parametrize(
    "text", ["", "clusters: []", "{}", "[]", '{"clusters": 3}', '{"clusters": [{"name": "x"}]}']
)
def test_a_file_of_another_form_is_left_alone(text: str) -> None:
    assert with_endpoints(text, ("b:1",)) == ""


def test_other_clusters_in_it_are_left_alone() -> None:
    body = json.loads(TEXT)
    body["clusters"].insert(0, {"name": "other", "cluster": {"endpoints": ["o:1"]}})
    text = with_endpoints(json.dumps(body), ("b:1",))
    found = {one["name"]: one["cluster"]["endpoints"] for one in json.loads(text)["clusters"]}
    assert found == {"other": ["o:1"], "polder": ["a:1", "b:1"]}
