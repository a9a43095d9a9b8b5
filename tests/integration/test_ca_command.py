"""`edge-orchestrator ca`: rotating, carrying and taking up a region's CA, and etcd's own."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from orchestrator.identity.authority import (
    LeafRequest,
    create_region,
    create_root,
    load_authority,
)
from orchestrator.identity.member import SERVER_NAME, MemberIdentity
from orchestrator.identity.pem import (
    UnusableFile,
    key_pem,
    new_key,
    pem_of,
    read_certificates,
)
from orchestrator.identity.rotation import Rotation
from orchestrator.main import main
from orchestrator.store.etcd.adapter import open_etcd
from orchestrator.store.etcd.settings import EtcdSettings, EtcdTls
from orchestrator.store.port import Put, StoreError
from polder.identity import MemberId, NodeId
from polder.local_access import read_token
from polder.local_proofs import verify_grant
from polder.signing import verify_chain
from polder.v1 import agent_pb2
from tests.integration.etcd_server import EtcdMember, TestAuthority
from tests.integration.gateway_harness import good_inventory
from tests.integration.orchestrator_rig import certificate_request, refusal, running, until

DOMAIN = "t.example"
HELLO = agent_pb2.Hello(instance_id="i", inventory=good_inventory())
_ENCODING_DER = 2  # of the standard library's certificates
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, stdout, stderr) of `edge-orchestrator ca ...`."""

    def command(*words: object) -> tuple[int, str, str]:
        code = main(["ca", *(str(word) for word in words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    create_root(tmp_path / "ca", DOMAIN, time.time())
    for region in ("east", "west"):
        create_region(tmp_path / "ca", region, time.time())
    return tmp_path / "ca"


def serial(directory: Path, region: str = "east") -> int:
    return load_authority(directory, region).intermediate.serial_number


# --- rotate ---------------------------------------------------------------------------------------


def test_rotate_makes_a_new_key_and_leaves_what_was_issued_valid(ca: Path, run: Run) -> None:
    former = load_authority(ca, "east")
    leaf = LeafRequest(NodeId(DOMAIN, "s", "n"), new_key().public_key(), 3600.0)
    issued = former.issue(leaf, time.time())
    code, out, _ = run("rotate", "--dir", ca, "--region", "east")
    assert code == 0 and "without a restart" in out
    newer = load_authority(ca, "east")
    assert newer.intermediate.public_key() != former.intermediate.public_key()
    assert newer.roots_der == former.roots_der
    for each in (issued, newer.issue(leaf, time.time())):
        verify_chain(each.chain_der, newer.roots_der, time.time())
    assert stat.S_IMODE((ca / "regions/east/ca.key").stat().st_mode) == 0o600
    assert not (ca / "regions/east/ca.key.next").exists()


def test_rotate_says_what_to_do_without_the_roots_key(ca: Path, run: Run) -> None:
    (ca / "root.key").unlink()
    code, _, err = run("rotate", "--dir", ca, "--region", "east")
    assert code == 1 and "ca export --region east" in err and "ca import" in err
    code, _, err = run("rotate", "--dir", ca, "--region", "north")
    assert code == 1 and "no CA for the region 'north'" in err


def test_a_replacement_that_ends_halfway_leaves_a_usable_pair(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each of its three steps, and then done again."""
    move = Path.replace
    for stop_after in (1, 2, 3):
        done: list[Path] = []

        def counted(
            self: Path, target: Path, at: int = stop_after, done: list[Path] = done
        ) -> Path:
            if len(done) == at:
                raise KeyboardInterrupt
            done.append(target)
            return move(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", counted)
            with contextlib.suppress(KeyboardInterrupt):
                create_region(ca, "east", time.time())
        load_authority(ca, "east")
        create_region(ca, "east", time.time())
        load_authority(ca, "east")


def test_init_refuses_what_could_not_serve(ca: Path, run: Run) -> None:
    code, _, err = run("init", "--dir", ca, "--region", "Eu_North")
    assert code == 1 and "is not a name of lower-case letters" in err
    (ca / "root.key").unlink()
    code, _, err = run("init", "--dir", ca, "--region", "north")
    assert code == 1 and "where it is kept" in err and "ca import" in err
    assert not (ca / "regions" / "north").exists()


# --- carrying -------------------------------------------------------------------------------------


def test_export_and_import_carry_a_region_and_not_the_roots_key(
    ca: Path, tmp_path: Path, run: Run
) -> None:
    out, there = tmp_path / "east.json", tmp_path / "there"
    code, said, _ = run("export", "--dir", ca, "--region", "east", "--out", out)
    assert code == 0 and "can act as this region" in said
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert (ca / "root.key").read_text() not in out.read_text()
    assert run("export", "--dir", ca, "--region", "east", "--out", out)[0] == 1  # is there
    code, said, _ = run("import", out, "--dir", there)
    assert code == 0 and "is ready" in said
    assert serial(there) == serial(ca) and not (there / "root.key").exists()
    shown = json.loads(run("show", "--dir", there)[1])
    assert shown["rootKey"] == "away" and list(shown["regions"]) == ["east"]
    assert "already" in run("import", out, "--dir", there)[1]


def test_import_takes_up_a_rotation_and_refuses_to_go_back(
    ca: Path, tmp_path: Path, run: Run
) -> None:
    there, old, new = tmp_path / "there", tmp_path / "old.json", tmp_path / "new.json"
    run("export", "--dir", ca, "--region", "east", "--out", old)
    run("import", old, "--dir", there)
    create_region(ca, "east", time.time() + 60)
    run("export", "--dir", ca, "--region", "east", "--out", new)
    code, said, _ = run("import", new, "--dir", there)
    assert code == 0 and "replaced" in said and serial(there) == serial(ca)
    code, _, err = run("import", old, "--dir", there)
    assert code == 1 and "newer" in err and serial(there) == serial(ca)


def test_import_refuses_what_does_not_belong_there(ca: Path, tmp_path: Path, run: Run) -> None:
    bundle, other = tmp_path / "b.json", tmp_path / "other"
    run("export", "--dir", ca, "--region", "east", "--out", bundle)
    create_root(other, DOMAIN, time.time())
    code, _, err = run("import", bundle, "--dir", other)
    assert code == 1 and "another root" in err and not (other / "regions").exists()
    code, _, err = run("import", bundle, "--dir", tmp_path / "x", "--trust-domain", "u.example")
    assert code == 1 and "not of u.example" in err
    body = json.loads(bundle.read_text())
    for change, word in (
        ({"region": "west"}, "says another region"),
        ({"key": key_pem(new_key()).decode()}, "does not belong"),
        ({"root": pem_of(load_authority_of(tmp_path / "alien")).decode()}, "not issued by"),
        ({"certificate": "nonsense"}, "damaged"),
        ({"kind": "Secret"}, "was not made by"),
    ):
        bundle.write_text(json.dumps({**body, **change}))
        code, _, err = run("import", bundle, "--dir", tmp_path / "x")
        assert code == 1 and word in err, err
    assert not (tmp_path / "x").exists()


def load_authority_of(directory: Path) -> tuple[bytes, ...]:
    """Another root's certificate."""
    create_root(directory, DOMAIN, time.time())
    create_region(directory, "east", time.time())
    return load_authority(directory, "east").roots_der


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_directorys_owner(
    ca: Path, tmp_path: Path, run: Run
) -> None:
    """An orchestrator that runs as a user of its own reads what an operator rotates as root."""
    os.chown(ca, 4242, 4242)
    assert run("rotate", "--dir", ca, "--region", "east")[0] == 0
    home = ca / "regions/east"
    assert {path.stat().st_uid for path in (home, home / "ca.key", home / "ca.crt")} == {4242}
    assert (ca / "root.key").stat().st_uid == 0
    bundle, data = tmp_path / "east.json", tmp_path / "data"
    run("export", "--dir", ca, "--region", "east", "--out", bundle)
    data.mkdir()
    os.chown(data, 4243, 4243)
    assert run("import", bundle, "--dir", data / "ca")[0] == 0
    made = (data / "ca", data / "ca/root.crt", data / "ca/regions/east/ca.key")
    assert {path.stat().st_uid for path in made} == {4243}


# --- taking it up ---------------------------------------------------------------------------------


def test_files_that_do_not_fit_together_change_nothing(ca: Path) -> None:
    authority = load_authority(ca, "east")
    member = MemberIdentity(authority, MemberId(DOMAIN, "east", "m"), time.time)
    rotation = Rotation(ca, "east", authority, member)
    assert not rotation.look()
    before = member.current
    key = ca / "regions/east/ca.key"
    own = key.read_bytes()
    key.write_bytes(key_pem(new_key()))
    assert not rotation.look() and member.current is before
    key.write_bytes(own)
    assert not rotation.look() and member.current is before
    create_region(ca, "east", time.time())
    assert rotation.look() and member.current is not before
    assert authority.intermediate.serial_number == serial(ca)
    # Another root is no rotation.
    create_root(ca.parent / "alien", DOMAIN, time.time())
    (ca / "root.crt").write_bytes((ca.parent / "alien/root.crt").read_bytes())
    assert not rotation.look()


def test_a_member_renews_by_the_life_that_it_got(ca: Path) -> None:
    """The region's CA ends before the member's certificate would: no renewal in a tight loop."""
    long_ago = time.time() - (2 * 365 - 3) * 86_400
    create_region(ca, "east", long_ago)
    member = MemberIdentity(load_authority(ca, "east"), MemberId(DOMAIN, "east", "m"), time.time)
    left_s = member.current.expires_at - time.time()
    assert left_s < 4 * 86_400
    assert member.current.due_at - time.time() == pytest.approx(left_s / 3, abs=5)


async def test_an_expired_region_is_named(ca: Path) -> None:
    create_region(ca, "east", time.time() - 3 * 365 * 86_400)
    with pytest.raises(UnusableFile, match="ca rotate"):
        MemberIdentity(load_authority(ca, "east"), MemberId(DOMAIN, "east", "m"), time.time)


async def test_a_running_member_takes_up_a_rotation(tmp_path: Path, run: Run) -> None:
    """Streams go on, new handshakes show the new chain, nodes renew with it."""
    async with running(tmp_path, region="east") as rig:
        await rig.site()
        node = await rig.node("n1")
        call = rig.agents(node).Session()
        await call.write(agent_pb2.SessionRequest(hello=HELLO))
        assert (await call.read()).HasField("welcome")
        former = rig.orchestrator.parts.member.current
        directory = rig.config.ca_path
        assert run("rotate", "--dir", directory, "--region", "east")[0] == 0
        await until(
            lambda: rig.orchestrator.parts.member.current is not former, "the rotation is taken up"
        )
        shown = await asyncio.to_thread(intermediate_shown_at, rig.config.listen, rig.roots_pem)
        assert shown == rig.authority.intermediate.public_key()
        renew = agent_pb2.RenewRequest(csr=certificate_request())
        await call.write(agent_pb2.SessionRequest(renew=renew))
        while not (answer := await call.read()).HasField("renew"):
            pass
        chain = list(answer.renew.certificate_chain)
        newer = x509.load_der_x509_certificate(chain[1])
        assert newer.public_key() == rig.authority.intermediate.public_key()
        verify_chain(chain, rig.authority.roots_der, time.time())
        # The certificate that the former CA issued still counts for a new connection.
        again = rig.agents(node).Session()
        await again.write(agent_pb2.SessionRequest(hello=HELLO))
        assert (await again.read()).HasField("welcome")
        again.cancel()
        call.cancel()
        assert (await refusal(rig.joiner().Join(agent_pb2.JoinRequest()))).reason == "TokenUnknown"


def intermediate_shown_at(address: str, roots_pem: bytes) -> object:
    """The key of the CA in the chain that the listener shows at a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots_pem.decode())
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=SERVER_NAME) as tls,
    ):
        internals: Any = tls._sslobj  # type: ignore[attr-defined]
        der = internals.get_verified_chain()[1].public_bytes(_ENCODING_DER)
    return x509.load_der_x509_certificate(der).public_key()


# --- etcd -----------------------------------------------------------------------------------------


def test_etcds_certificates_come_from_a_ca_of_its_own(ca: Path, run: Run) -> None:
    code, out, _ = run("etcd", "--dir", ca, "--name", "e1", "--host", "10.0.0.1", "--host", "e1.x")
    assert code == 0 and f"--cert-file={ca}/etcd/e1/etcd.crt" in out and "--peer-cert-file" in out
    assert "Made a new CA for etcd" in out  # in a wrong directory, too: it must be seen
    code, out, _ = run("etcd", "--dir", ca, "--name", "polder", "--client")
    assert code == 0 and f'etcd_cert = "{ca}/etcd/polder/etcd.crt"' in out
    assert "new CA" not in out
    member, client = certificate(ca, "e1"), certificate(ca, "polder")
    names = member.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "e1.x" in names.get_values_for_type(x509.DNSName)
    usages = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH not in usages
    root = load_authority(ca, "east").root
    assert member.issuer == client.issuer != root.subject
    with pytest.raises(ValueError, match="ssuer"):
        member.verify_directly_issued_by(root)
    assert stat.S_IMODE((ca / "etcd/e1/etcd.key").stat().st_mode) == 0o600
    shown = json.loads(run("show", "--dir", ca)[1])["etcd"]
    assert list(shown["members"]) == ["e1"] and list(shown["clients"]) == ["polder"]


def test_renewing_keeps_the_key_and_the_names(ca: Path, run: Run) -> None:
    run("etcd", "--dir", ca, "--name", "e1", "--host", "10.0.0.1")
    key, first = (ca / "etcd/e1/etcd.key").read_bytes(), certificate(ca, "e1")
    assert run("etcd", "--dir", ca, "--name", "e1")[0] == 0
    second = certificate(ca, "e1")
    assert (ca / "etcd/e1/etcd.key").read_bytes() == key
    assert second.serial_number != first.serial_number
    oid = x509.SubjectAlternativeName
    names = [c.extensions.get_extension_for_class(oid).value for c in (first, second)]
    assert set(names[0]) == set(names[1])


def test_what_etcd_cannot_be_given(ca: Path, run: Run) -> None:
    run("etcd", "--dir", ca, "--name", "e1", "--host", "10.0.0.1")
    for words, said in (
        (("--name", "e2"), "needs --host"),
        (("--name", "e1", "--client"), "is a member of etcd already"),
        (("--name", "c1", "--client", "--host", "h"), "leave --host out"),
        (("--name", "../e1", "--host", "h"), "is no name"),
    ):
        code, _, err = run("etcd", "--dir", ca, *words)
        assert code == 1 and said in err, err


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "etcd" / name / "etcd.crt").read_bytes())


@pytest.mark.etcd
async def test_an_etcd_set_up_with_our_tool_alone(ca: Path, tmp_path: Path, run: Run) -> None:
    run("etcd", "--dir", ca, "--name", "e1", "--host", "127.0.0.1")
    run("etcd", "--dir", ca, "--name", "polder", "--client")

    def files(name: str) -> EtcdTls:
        home = ca / "etcd" / name
        return EtcdTls(home / "ca.crt", home / "etcd.crt", home / "etcd.key")

    member = EtcdMember("e1", tmp_path, files("e1"), ())
    try:
        member.start(f"e1={member.peer_url}")
        await asyncio.to_thread(member.wait_until_healthy)
        store = await open_etcd(EtcdSettings((member.endpoint,), files("polder")))
        assert (await store.txn([], [Put("/x", b"1")])).committed
        await store.close()
        stranger = TestAuthority(tmp_path / "stranger").issue("polder")
        wrong = EtcdTls(files("polder").ca, stranger.certificate, stranger.key)
        with pytest.raises(StoreError):
            await open_etcd(EtcdSettings((member.endpoint,), wrong))
    finally:
        member.kill()


# --- break-glass ----------------------------------------------------------------------------------


BREAK_GLASS = ("break-glass", "--site", "nl-1", "--purpose", "ward 3 floods", "--for", "2h")


@pytest.mark.parametrize("by", [(), ("--region", "east")])
def test_a_break_glass_token_is_what_agents_believe(ca: Path, run: Run, by: tuple[str]) -> None:
    code, out, told = run(
        *BREAK_GLASS, "--namespace", "umc", "--allow", "stop,exec", *by, "--dir", ca
    )
    assert code == 0
    token = read_token(out)
    roots = [read_certificates(ca / "root.crt")[0].public_bytes(Encoding.DER)]
    grant, _ = verify_grant(token, roots, time.time(), DOMAIN, "nl-1")
    assert grant.allow == ("stop", "exec") and grant.target == "umc"
    assert grant.expires_at_ms - grant.issued_at_ms == 7_200_000
    assert [token.root] == roots and grant.serial in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--for", "25h"), "24 hours"),
        (("--for", "soon"), "not a duration"),
        (("--allow", "delete"), "none of"),
        (("--allow", "freeze", "--namespace", "umc"), "whole site"),
        (("--workload", "triage"), "namespace"),
        (("--purpose", " \n"), "purpose"),
        (("--region", "north"), "no CA for the region"),
    ],
)
def test_a_break_glass_token_that_nobody_should_have(
    ca: Path, run: Run, change: tuple[str, ...], said: str
) -> None:
    code, out, told = run(*BREAK_GLASS, "--allow", "stop", *change, "--dir", ca)
    assert code == 1 and not out and said in told


def test_without_the_roots_key_a_region_must_be_named(ca: Path, run: Run) -> None:
    (ca / "root.key").unlink()
    code, out, told = run(*BREAK_GLASS, "--allow", "stop", "--dir", ca)
    assert code == 1 and not out and "root.key" in told and "--region" in told
