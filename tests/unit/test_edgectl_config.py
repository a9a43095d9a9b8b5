"""The configuration: pure edits, and a file that is private, atomic and forgiving."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from edgectl import config, config_file
from edgectl.errors import CliError, UsageError

PEM = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n"


def document(name: str = "a", **cluster: Any) -> config.Document:
    return config.context_document(
        name,
        cluster={
            "endpoints": ["h:1", "h:2"],
            "certificateAuthorityData": PEM.decode(),
            **cluster,
        },
        certificate_pem=PEM,
        key_pem=KEY,
    )


def no_files(_: str) -> bytes:
    raise AssertionError("no file is named")


def test_connection_of_the_current_context() -> None:
    found = config.connection(document(serverName="n"), "c.yaml", "", no_files)
    assert found.endpoints == ("h:1", "h:2")
    assert (found.ca_pem, found.key_pem, found.server_name) == (PEM, KEY, "n")
    assert found.namespace == "default"
    assert "PRIVATE" not in repr(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoints": []}, "endpoints: expected a list"),
        ({"endpoints": ["nohost"]}, "is not an endpoint"),
        ({"endpoints": [":1"]}, "is not an endpoint"),
        ({"certificateAuthorityData": "%%%"}, "is not base64"),
        ({"certificateAuthorityData": ""}, "needs certificateAuthority"),
    ],
)
def test_what_a_cluster_lacks_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises((CliError, UsageError), match=message):
        config.connection(document(**change), "c.yaml", "", no_files)


def test_unknown_context_names_the_known() -> None:
    with pytest.raises(CliError, match="no context 'b'") as caught:
        config.connection(document(), "c.yaml", "b", no_files)
    assert caught.value.hints == ("known contexts: a",)
    with pytest.raises(CliError, match=r"there is no context: c\.yaml is missing"):
        config.connection(config.empty(), "c.yaml", "", no_files)


@pytest.mark.parametrize(
    "raw", [[], "x", {"clusters": {}}, {"users": [{"name": 1}]}, {"contexts": [{"name": "a"}]}]
)
def test_wrong_shapes_are_refused(raw: object) -> None:
    with pytest.raises(CliError, match=r"c\.yaml"):
        config.checked(raw, "c.yaml")


def test_merge_keeps_unknown_keys_and_refuses_a_clash() -> None:
    mine = config.with_entry(document("a"), "clusters", "odd", {"endpoints": ["x:1"], "new": 1})
    both = config.merged(mine, document("b"), overwrite=False)
    assert config.names(both, "contexts") == ["a", "b"]
    assert config.entry(both, "clusters", "odd") == {"endpoints": ["x:1"], "new": 1}
    assert config.merged(both, document("b"), overwrite=False) == both
    with pytest.raises(CliError, match="already has another cluster"):
        config.merged(both, document("b", serverName="other"), overwrite=False)
    assert config.merged(both, document("b", serverName="other"), overwrite=True) != both


def test_deleting_a_context_forgets_what_only_it_used() -> None:
    both = config.merged(document("a"), document("b"), overwrite=False)
    left = config.without_context(both, "a")
    assert [config.names(left, section) for section in config.SECTIONS] == [["b"]] * 3
    assert left["currentContext"] == ""
    assert config.names(both, "contexts") == ["a", "b"]


def test_view_hides_the_key() -> None:
    shown = config_file.render(config.redacted(document()))
    assert "REDACTED" in shown
    assert (
        config.context_document("a", cluster={}, certificate_pem=PEM, key_pem=KEY)["users"][0][
            "user"
        ]["clientKeyData"]
        not in shown
    )


def test_file_is_private_and_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.yaml"
    config_file.update(path, lambda doc: config.merged(doc, document(), overwrite=False))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()

    def fail(_: config.Document) -> config.Document:
        raise CliError("no")

    with pytest.raises(CliError):
        config_file.update(path, fail)
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_update_follows_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.yaml"
    link = tmp_path / "config.yaml"
    real.write_text("")
    link.symlink_to(real)
    config_file.update(link, lambda _: document())
    assert link.is_symlink()
    assert config_file.load(real)["currentContext"] == "a"


def test_exposed_key_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config_file.render(document()))
    path.chmod(0o644)
    config_file.connection(path, config_file.load(path), "")
    assert "chmod 600" in capsys.readouterr().err
    path.chmod(0o600)
    config_file.connection(path, config_file.load(path), "")
    assert capsys.readouterr().err == ""


def test_files_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEY)
    (tmp_path / "key.pem").chmod(0o600)
    changed = document()
    changed["users"][0]["user"] = {
        "clientCertificateData": PEM.decode(),
        "clientKey": "key.pem",
    }
    found = config_file.connection(tmp_path / "config.yaml", changed, "")
    assert found.key_pem == KEY
    changed["users"][0]["user"]["clientKey"] = "absent.pem"
    with pytest.raises(CliError, match=r"absent\.pem: No such file"):
        config_file.connection(tmp_path / "config.yaml", changed, "")


@pytest.mark.parametrize("content", ["a: [", "- x", "a: 1: 2", "\x00", "[" * 5000])
def test_unreadable_file_is_explained(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(CliError, match=r"config\.yaml"):
        config_file.load(path)


def test_path_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECTL_CONFIG", raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(config_file.default_path()) == "/home/ada/.config/polder/config.yaml"
    monkeypatch.setenv("EDGECTL_CONFIG", "/etc/e.yaml")
    assert str(config_file.default_path()) == "/etc/e.yaml"
    assert str(config_file.default_path("~/x")) == "/home/ada/x"


def test_spelling_of_a_kubeconfig_is_read() -> None:
    respelled = config_file.render(document(serverName="n", trustDomain="t"))
    for ours, theirs in (
        ("currentContext", "current-context"),
        ("certificateAuthorityData", "certificate-authority-data"),
        ("trustDomain", "trust-domain"),
        ("clientCertificateData", "client-certificate-data"),
        ("clientKeyData", "client-key-data"),
    ):
        assert ours in respelled
        respelled = respelled.replace(ours, theirs)
    read = config.checked(config_file.parse(respelled.encode(), "c.yaml"), "c.yaml")
    assert read == document(serverName="n", trustDomain="t")
    assert "REDACTED" in config_file.render(config.redacted(read))


def test_json_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "admin.yaml"
    path.write_text(json.dumps(document()))
    config_file.update(path, lambda doc: config.with_entry(doc, "clusters", "b", {}))
    assert config.names(json.loads(path.read_text()), "clusters") == ["a", "b"]
