"""What a real member says of where members are: tokens, joins and operators' contexts."""

from pathlib import Path

from orchestrator.identity.pem import new_key
from orchestrator.installation import ADMIN, issue_context
from orchestrator.records import MemberRecord
from orchestrator.store import keys
from polder.tokens import parse as parse_token
from polder.v1 import agent_pb2, operator_pb2
from tests.integration.orchestrator_rig import certificate_request, read_endpoints, running


async def test_every_way_in_names_all_members(tmp_path: Path) -> None:
    async with running(tmp_path, region="west", location="52.4,4.9") as rig:
        far = MemberRecord("far", "east", "9", ("10.0.0.9:1",), ("10.0.0.9:2",), "", (52.2, 21.0))
        mid = MemberRecord("mid", "mid", "9", ("10.0.0.5:1",), ("10.0.0.5:2",), "", (50.1, 8.7))
        for record in (far, mid):
            await rig.put(keys.member(record.name), record.to_bytes())
        own = rig.config.listen
        await rig.site()
        request = operator_pb2.IssueOperatorRequest(
            name="anna", roles=["admin"], csr=certificate_request()
        )
        answer = await rig.admin().IssueOperator(request)
        assert list(answer.endpoints) == [own, "10.0.0.5:1", "10.0.0.9:1"]

        asked = operator_pb2.CreateJoinTokenRequest(site="ams-1", node="box-1")
        token = parse_token((await rig.admin().CreateJoinToken(asked)).token)
        assert set(token.endpoints) == {rig.config.join_listen, "10.0.0.5:2", "10.0.0.9:2"}
        joined = await rig.joiner().Join(
            agent_pb2.JoinRequest(
                token_secret=token.secret, node="box-1", csr=certificate_request(new_key())
            )
        )
        assert set(joined.endpoints) == {own, "10.0.0.5:1", "10.0.0.9:1"}

        parts = rig.orchestrator.parts
        path = tmp_path / "context.yaml"
        await issue_context(
            parts.store, parts.authority, rig.config, parts.clock, ADMIN, ("admin",), path
        )
        assert read_endpoints(path) == [own, "10.0.0.5:1", "10.0.0.9:1"]
