"""Joining: exactly once, for the right site, with the reason when it is refused."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from grpc import aio

from orchestrator.identity.pem import new_key
from orchestrator.records import TokenRecord
from orchestrator.store import keys
from polder.signing import identity_of, verify_chain
from polder.tokens import parse as parse_token
from polder.tokens import secret_digest
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.gateway_harness import good_inventory
from tests.integration.orchestrator_rig import (
    Credentials,
    Rig,
    certificate_request,
    detail_of,
    manifest,
    ref,
    refusal,
    running,
    until,
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        await made.site()
        yield made


def request(secret: str, node: str = "n1", **more: object) -> agent_pb2.JoinRequest:
    csr = more.pop("csr", None) or certificate_request()
    return agent_pb2.JoinRequest(token_secret=secret, node=node, csr=csr, **more)  # type: ignore[arg-type]


async def test_a_join_makes_an_identity_and_a_node(rig: Rig) -> None:
    response = await rig.joiner().Join(request(await rig.token()))
    assert (response.node, response.site) == ("n1", "ams-1")
    assert list(response.endpoints) == [rig.config.listen]
    leaf = verify_chain(list(response.certificate_chain), list(response.trust_bundle), time.time())
    assert identity_of(leaf) == rig.node_id("n1")
    node = (await rig.admin().Get(operator_pb2.GetRequest(ref=ref("Node", "n1")))).resource
    assert node.metadata.labels["polder.eu/site"] == "ams-1"
    events = [e.reason for e in rig.orchestrator.parts.events.list(kind="Node", name="n1")]
    assert "Joined" in events


async def test_one_token_admits_one_of_a_thousand(rig: Rig) -> None:
    secret = await rig.token()
    csr = certificate_request()
    stubs = [rig.joiner() for _ in range(8)]

    async def attempt(number: int) -> str:
        try:
            await stubs[number % 8].Join(request(secret, f"n{number}", csr=csr), timeout=60)
        except aio.AioRpcError as error:
            return detail_of(error).reason
        return "joined"

    outcomes = await asyncio.gather(*(attempt(number) for number in range(1000)))
    assert outcomes.count("joined") == 1
    assert set(outcomes) == {"joined", "TokenUnknown"}
    assert len(list(rig.orchestrator.parts.cache.resources("Node"))) == 1
    assert len(rig.orchestrator.parts.cache.identities("node")) == 1


async def test_a_used_token_is_refused(rig: Rig) -> None:
    secret = await rig.token()
    await rig.joiner().Join(request(secret))
    refused = await refusal(rig.joiner().Join(request(secret, "n2")))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "TokenUnknown",
    )
    assert "used" in refused.message


async def test_an_expired_token_is_refused_and_later_forgotten(rig: Rig) -> None:
    parts = rig.orchestrator.parts
    now_ms = int(time.time() * 1000)
    expired = TokenRecord("ams-1", "", "operator/admin", now_ms - 700_000, now_ms - 1)
    await rig.put(keys.token(secret_digest("old")), expired.to_bytes())
    assert (await refusal(rig.joiner().Join(request("old")))).reason == "TokenExpired"
    assert await parts.tokens.sweep() == 0, "the clock of a leader may be an hour ahead"
    long_ago = now_ms - 3 * 3_600_000
    older = TokenRecord("ams-1", "", "operator/admin", long_ago - 600_000, long_ago)
    await rig.put(keys.token(secret_digest("older")), older.to_bytes())
    await rig.put(keys.token("0"), b'{"of": "another version"}')
    assert await parts.tokens.sweep() == 1, "one that cannot be read ends no sweep, and no process"
    assert await parts.store.get(keys.token(secret_digest("older"))) is None
    assert await parts.store.get(keys.token("0")) is not None


async def test_a_token_of_another_installation_is_unknown(rig: Rig) -> None:
    assert (await refusal(rig.joiner().Join(request("made-elsewhere")))).reason == "TokenUnknown"
    assert (await refusal(rig.joiner().Join(request("")))).reason == "TokenUnknown"
    assert (await refusal(rig.joiner().Join(request("x" * 5000)))).reason == "TokenUnknown"


async def test_a_token_for_a_node_admits_only_that_node(rig: Rig) -> None:
    secret = await rig.token(node="n7")
    assert (await refusal(rig.joiner().Join(request(secret, "n8")))).reason == "WrongNode"
    response = await rig.joiner().Join(request(secret, ""))
    assert response.node == "n7"


async def test_a_name_that_lives_is_taken_until_it_is_revoked(rig: Rig) -> None:
    await rig.node("n1")
    refused = await refusal(rig.joiner().Join(request(await rig.token())))
    assert refused.reason == "NameTaken" and "revoke" in refused.detail.hint
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    await rig.node("n1")
    record = rig.orchestrator.parts.cache.identity("node", "n1")
    assert record is not None and not record.revoked_at_ms and len(record.serials) == 1


async def test_a_name_belongs_to_its_site(rig: Rig) -> None:
    await rig.node("n1")
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    await rig.apply(manifest("Site", "rtm-1", spec={"provider": "telco", "country": "NL"}))
    refused = await refusal(rig.joiner().Join(request(await rig.token("rtm-1"))))
    assert refused.reason == "WrongSite"


async def test_a_token_of_a_site_that_is_gone_is_refused(rig: Rig) -> None:
    secret = await rig.token()
    await rig.admin().Delete(operator_pb2.DeleteRequest(ref=ref("Site", "ams-1")))
    assert (await refusal(rig.joiner().Join(request(secret)))).reason == "SiteMissing"


def _wrong_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _without_proof() -> bytes:
    csr = bytearray(certificate_request())
    csr[-5] ^= 0xFF
    return bytes(csr)


@pytest.mark.parametrize("csr", [b"nonsense", b"x" * 9000, _wrong_curve(), _without_proof()])
async def test_a_bad_request_leaves_the_token_unused(rig: Rig, csr: bytes) -> None:
    secret = await rig.token()
    assert (await refusal(rig.joiner().Join(request(secret, csr=csr)))).reason == "BadCsr"
    await rig.joiner().Join(request(secret))


async def test_a_cloned_disk_is_refused_until_it_has_an_id_of_its_own(rig: Rig) -> None:
    secret = await rig.token()
    await rig.joiner().Join(request(await rig.token(), "n1", machine_id="m"))
    refused = await refusal(rig.joiner().Join(request(secret, "n2", machine_id="m")))
    assert refused.reason == "MachineIdTaken"
    assert "systemd-machine-id-setup" in refused.detail.hint and "node/n1" in refused.detail.hint
    await rig.joiner().Join(request(secret, "n2", machine_id="m2"))


async def test_of_boxes_with_one_disk_that_join_at_once_one_gets_in(rig: Rig) -> None:
    names = [f"n{number}" for number in range(6)]
    secrets = [await rig.token() for _ in names]
    joiner = rig.joiner()
    calls = (
        joiner.Join(request(secret, name, machine_id="m"))
        for secret, name in zip(secrets, names, strict=True)
    )
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert all("machine id" in str(a) for a in answers if isinstance(a, BaseException))


async def test_a_box_gets_another_name_when_the_first_is_revoked(rig: Rig) -> None:
    await rig.joiner().Join(request(await rig.token(), "n1", machine_id="m"))
    await rig.admin().Revoke(operator_pb2.RevokeRequest(ref=ref("Node", "n1")))
    await rig.joiner().Join(request(await rig.token(), "n2", machine_id="m"))
    again = await refusal(rig.joiner().Join(request(await rig.token(), "n3", machine_id="m")))
    assert again.reason == "MachineIdTaken" and "n2" in str(again)


async def test_a_token_names_the_root_and_lives_ten_minutes_at_most(rig: Rig) -> None:
    create = operator_pb2.CreateJoinTokenRequest
    token = parse_token((await rig.admin().CreateJoinToken(create(site="ams-1"))).token)
    assert token.ca == rig.authority.roots_der[0]
    assert token.endpoints == (rig.config.join_listen,)
    assert token.expires_at_ms <= (time.time() + 600) * 1000
    long = rig.admin().CreateJoinToken(create(site="ams-1", ttl_ms=600_001))
    assert (await refusal(long)).reason == "BadTtl"
    named = await rig.admin().CreateJoinToken(create(site="ams-1", node="n9", ttl_ms=86_400_000))
    assert named.expires_at_ms > (time.time() + 86_000) * 1000
    longer = rig.admin().CreateJoinToken(create(site="ams-1", node="n9", ttl_ms=86_400_001))
    assert (await refusal(longer)).reason == "BadTtl"
    nowhere = rig.admin().CreateJoinToken(create(site="nowhere"))
    assert (await refusal(nowhere)).reason == "NotFound"


async def test_renewal_keeps_the_old_serial_until_the_new_one_is_used(rig: Rig) -> None:
    parts = rig.orchestrator.parts
    await rig.node("n1")
    identity = rig.node_id("n1")

    def serials() -> list[str]:
        record = parts.cache.identity("node", "n1")
        return list(record.serials) if record else []

    await until(lambda: len(serials()) == 1, "the join is mirrored")
    first = serials()[0]
    await parts.nodes.renew(identity, first, certificate_request())
    await until(lambda: len(serials()) == 2, "the renewal is mirrored")
    second = serials()[1]
    await parts.nodes.confirm_serial(identity, first)
    assert serials() == [first, second]
    await parts.nodes.confirm_serial(identity, second)
    await until(lambda: serials() == [second], "the older serial is dropped")


async def test_a_box_whose_answer_got_lost_is_answered_again(rig: Rig) -> None:
    """It asks with the same key; whoever found the token in its files has another."""
    key = new_key()
    asked = request(await rig.token(), "box", csr=certificate_request(key))
    await rig.joiner().Join(asked)  # the answer goes astray
    answer = await rig.joiner().Join(asked)
    assert answer.node == "box"
    record = rig.orchestrator.parts.cache.identity("node", "box")
    assert record is not None and len(record.serials) == 2
    call = rig.agents(Credentials(key, tuple(answer.certificate_chain))).Session()
    hello = agent_pb2.Hello(instance_id="i", inventory=good_inventory())
    await call.write(agent_pb2.SessionRequest(hello=hello))
    assert (await call.read()).HasField("welcome")
    call.cancel()
    asked.csr = certificate_request(new_key())
    assert (await refusal(rig.joiner().Join(asked))).reason == "TokenUnknown"
