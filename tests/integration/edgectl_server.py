"""A small operator API in memory, for the tests of edgectl: a real gRPC server with mTLS.

It keeps the contract's shapes, not the orchestrator's rules. Tests change its data directly.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgectl.selectors import parse
from polder.errors import detail
from polder.manifest import KINDS, InvalidManifest, decode_document
from polder.v1 import common_pb2, operator_pb2, operator_pb2_grpc

SERVER_NAME = "orchestrator.polder.internal"
Key = tuple[str, str, str]


class Authority:
    """A CA that issues what the tests need. PEM everywhere."""

    def __init__(self, name: str = "test root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key.public_key(), timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, uri: str, names: list[x509.GeneralName], life: timedelta = timedelta(hours=1)
    ) -> tuple[bytes, bytes]:
        """(certificate, key)"""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self.sign(key.public_key(), uri, names, life), pem

    def sign(
        self,
        public_key: Any,
        uri: str,
        names: list[x509.GeneralName],
        life: timedelta = timedelta(hours=1),
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri.rpartition("/")[2])])
        builder = self._builder(subject, public_key, life)
        sans = [x509.UniformResourceIdentifier(uri), *names]
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _builder(
        self, subject: x509.Name, public_key: Any, life: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        start, end = sorted((now - timedelta(days=2), now + life))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class FakeOperatorApi(operator_pb2_grpc.OperatorServiceServicer):
    """`resources` is guarded by `lock`; use `put` and `remove`, which tell the watchers."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.lock = threading.RLock()
        self.resources: dict[Key, common_pb2.Resource] = {}
        self.watchers: list[tuple[operator_pb2.WatchRequest, queue.SimpleQueue[Any]]] = []
        self.revision = 0
        self.calls: list[tuple[str, Any]] = []
        self.events: list[common_pb2.Event] = []
        self.event_streams: list[queue.SimpleQueue[Any]] = []
        self.logs: dict[str, bytes] = {}
        self.slow_deletion = False
        self.conflicts = 0
        self.refuse: tuple[grpc.StatusCode, str] | None = None
        self.unknown: tuple[str, ...] = ()  # calls that an older orchestrator does not have
        self.server_violations: list[tuple[int, str, str]] = []
        self.resizes: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        # What Rollout answers: one after the other, and the last again and again.
        self.before_apply: Callable[[], object] | None = None  # once: somebody who is faster
        self.rollouts: list[operator_pb2.RolloutStatus] = []
        self.revisions: list[operator_pb2.RevisionInfo] = []
        self.templates: dict[int, dict[str, Any]] = {}
        self.story: operator_pb2.StoryResponse | None = None
        self.regions = operator_pb2.RegionsResponse()
        self.releases = operator_pb2.ReleasesResponse()
        # What one Drill after the other answers; a text breaks the stream there.
        self.drills: list[list[operator_pb2.DrillResponse | str]] = []

    # --- what tests do ------------------------------------------------------------------------

    def put(
        self,
        kind: str,
        name: str,
        spec: dict[str, Any] | None = None,
        status: dict[str, Any] | None = None,
        *,
        namespace: str = "",
        labels: dict[str, str] | None = None,
        age_s: float = 60,
        changed_by: str = "",
    ) -> common_pb2.Resource:
        where = (namespace or "default") if KINDS[kind].namespaced else ""
        with self.lock:
            self.revision += 1
            old = self.resources.get((kind, where, name))
            resource = common_pb2.Resource(api_version="polder.eu/v1", kind=kind)
            if old is not None:
                resource.CopyFrom(old)
            meta = resource.metadata
            meta.name, meta.namespace, meta.revision = name, where, self.revision
            meta.generation += spec is not None
            meta.uid = meta.uid or f"uid-{self.revision}"
            meta.created_at_ms = meta.created_at_ms or now_ms() - round(age_s * 1000)
            meta.changed_by, meta.changed_at_ms = changed_by, now_ms() if changed_by else 0
            if labels is not None:
                meta.labels.clear()
                meta.labels.update(labels)
            if spec is not None:
                resource.spec_json = json.dumps(spec).encode()
            if status is not None:
                resource.status_json = json.dumps(status).encode()
            self.resources[(kind, where, name)] = resource
            added = operator_pb2.WATCH_TYPE_ADDED
            self._tell(operator_pb2.WATCH_TYPE_MODIFIED if old else added, resource)
            return resource

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        where = (namespace or "default") if KINDS[kind].namespaced else ""
        with self.lock:
            resource = self.resources.pop((kind, where, name), None)
            if resource is not None:
                self._tell(operator_pb2.WATCH_TYPE_DELETED, resource)

    def spec(self, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
        where = (namespace or "default") if KINDS[kind].namespaced else ""
        found: dict[str, Any] = json.loads(self.resources[(kind, where, name)].spec_json)
        return found

    def break_watches(self) -> None:
        with self.lock:
            for _, stream in self.watchers:
                stream.put("break")

    def called(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]

    # --- the service --------------------------------------------------------------------------

    def Apply(self, request: Any, context: Any) -> operator_pb2.ApplyResponse:
        self._begin("Apply", request, context)
        if self.before_apply is not None:
            hook, self.before_apply = self.before_apply, None
            hook()
        if self.server_violations:
            metadata = detail("InvalidManifest", "fix the file", self.server_violations)
            self._fail(context, grpc.StatusCode.INVALID_ARGUMENT, "invalid manifests", metadata)
        response = operator_pb2.ApplyResponse()
        with self.lock:
            manifests = []
            for number, document in enumerate(request.documents):
                try:
                    manifests.append((decode_document(json.loads(document.json)), document))
                except InvalidManifest as error:
                    found = [(number, v.path, v.message) for v in error.violations]
                    metadata = detail("InvalidManifest", "", found)
                    self._fail(context, grpc.StatusCode.INVALID_ARGUMENT, "invalid", metadata)
            for manifest, document in manifests:
                response.results.append(self._apply(manifest, document, request.dry_run, context))
        return response

    def _apply(self, manifest: Any, document: Any, dry_run: bool, context: Any) -> Any:
        old = self.resources.get(manifest.ref)
        if document.expected_revision and (
            self.conflicts or old is None or old.metadata.revision != document.expected_revision
        ):
            self.conflicts = max(0, self.conflicts - 1)
            self._fail(context, grpc.StatusCode.ABORTED, "changed meanwhile", detail("Conflict"))
        spec, labels = manifest.raw_spec, manifest.metadata.labels
        same = old is not None and json.loads(old.spec_json) == spec
        same = same and old is not None and dict(old.metadata.labels) == labels
        outcome = (
            operator_pb2.APPLY_OUTCOME_UNCHANGED
            if same
            else operator_pb2.APPLY_OUTCOME_CONFIGURED
            if old
            else operator_pb2.APPLY_OUTCOME_CREATED
        )
        if same:
            resource = old
        elif dry_run:
            resource = common_pb2.Resource(api_version="polder.eu/v1", kind=manifest.kind)
            resource.metadata.name = manifest.metadata.name
            resource.metadata.namespace = manifest.metadata.namespace
            resource.metadata.labels.update(labels)
            resource.spec_json = json.dumps(spec).encode()
        else:
            resource = self.put(
                manifest.kind,
                manifest.metadata.name,
                spec,
                namespace=manifest.metadata.namespace,
                labels=labels,
            )
        return operator_pb2.ApplyResult(outcome=outcome, resource=resource)

    def Get(self, request: Any, context: Any) -> operator_pb2.GetResponse:
        self._begin("Get", request, context)
        ref = request.ref
        return operator_pb2.GetResponse(resource=self._found(ref, context), now_ms=now_ms())

    def List(self, request: Any, context: Any) -> operator_pb2.ListResponse:
        self._begin("List", request, context)
        with self.lock:
            found = [r for r in self.resources.values() if _matches(r, request)]
        found.sort(key=lambda r: (r.metadata.namespace, r.metadata.name))
        start = int(request.continue_token or 0)
        page = found[start : start + min(request.limit, 3)]
        token = str(start + len(page)) if start + len(page) < len(found) else ""
        return operator_pb2.ListResponse(
            resources=page, continue_token=token, revision=self.revision, now_ms=now_ms()
        )

    def Watch(self, request: Any, context: Any) -> Iterator[operator_pb2.WatchResponse]:
        self._begin("Watch", request, context)
        stream: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self.lock:
            for resource in self.resources.values():
                if _matches(resource, request):
                    stream.put(_change(operator_pb2.WATCH_TYPE_ADDED, resource))
            stream.put(operator_pb2.WatchResponse(type=operator_pb2.WATCH_TYPE_SYNCED))
            self.watchers.append((request, stream))
        context.add_callback(lambda: stream.put(None))
        while (message := stream.get()) is not None:
            if message == "break":
                self._fail(context, grpc.StatusCode.UNAVAILABLE, "stream broken")
            yield message

    def Delete(self, request: Any, context: Any) -> operator_pb2.DeleteResponse:
        self._begin("Delete", request, context)
        resource = self._found(request.ref, context)
        if request.dry_run:
            return operator_pb2.DeleteResponse(resource=resource)
        ref = request.ref
        if not self.slow_deletion:
            self.remove(ref.kind, ref.name, ref.namespace)
            return operator_pb2.DeleteResponse(resource=resource, finished=True)
        resource.metadata.deletion_requested_at_ms = now_ms()
        timer = threading.Timer(0.2, self.remove, (ref.kind, ref.name, ref.namespace))
        timer.daemon = True
        timer.start()
        return operator_pb2.DeleteResponse(resource=resource)

    def Logs(self, request: Any, context: Any) -> Iterator[operator_pb2.LogsResponse]:
        self._begin("Logs", request, context)
        data = self.logs.get(request.replica)
        if data is None:
            metadata = detail("NoSuchContainer", "it has not started yet")
            self._fail(context, grpc.StatusCode.FAILED_PRECONDITION, "no logs", metadata)
            return
        for at in range(0, len(data), 7):
            yield operator_pb2.LogsResponse(data=data[at : at + 7])

    def Exec(self, requests: Any, context: Any) -> Iterator[operator_pb2.ExecResponse]:
        start = next(requests).start
        self._begin("Exec", start, context)
        command = list(start.options.command)
        if command[0] == "cat":
            for request in requests:
                which = request.WhichOneof("message")
                if which == "stdin":
                    yield operator_pb2.ExecResponse(stdout=request.stdin)
                    if b"\x04" in request.stdin and start.options.tty:
                        break
                elif which == "resize":
                    self.resizes.put((request.resize.columns, request.resize.rows))
                elif which == "close_stdin":
                    break
            yield operator_pb2.ExecResponse(exit_code=0)
        elif command[0] == "break":
            yield operator_pb2.ExecResponse(stdout=b"begun\n")
        else:
            yield operator_pb2.ExecResponse(stdout=b"out\n")
            yield operator_pb2.ExecResponse(stderr=b"err\n")
            yield operator_pb2.ExecResponse(exit_code=int(command[1]))

    def Events(self, request: Any, context: Any) -> Iterator[operator_pb2.EventsResponse]:
        self._begin("Events", request, context)
        wanted = request.object
        found = [
            e
            for e in self.events
            if not wanted.name or (e.object.kind, e.object.name) == (wanted.kind, wanted.name)
        ]
        yield operator_pb2.EventsResponse(events=found, now_ms=now_ms())
        if request.follow:
            stream: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self.event_streams.append(stream)
            context.add_callback(lambda: stream.put(None))
            while (event := stream.get()) is not None:
                yield operator_pb2.EventsResponse(events=[event], now_ms=now_ms())

    def Rollout(self, request: Any, context: Any) -> operator_pb2.RolloutResponse:
        self._begin("Rollout", request, context)
        self._found(request.ref, context)
        status = self.rollouts.pop(0) if len(self.rollouts) > 1 else self.rollouts[0]
        template = self.templates.get(request.revision)
        return operator_pb2.RolloutResponse(
            status=status,
            revisions=self.revisions,
            now_ms=now_ms(),
            template_json=json.dumps(template).encode() if template else b"",
        )

    def UndoRollout(self, request: Any, context: Any) -> operator_pb2.UndoRolloutResponse:
        self._begin("UndoRollout", request, context)
        resource = self._found(request.ref, context)
        to = request.to_revision or 1
        return operator_pb2.UndoRolloutResponse(resource=resource, from_revision=3, to_revision=to)

    def Story(self, request: Any, context: Any) -> operator_pb2.StoryResponse:
        self._begin("Story", request, context)
        if self.story is None:
            self._fail(context, grpc.StatusCode.UNIMPLEMENTED, "an older orchestrator")
        assert self.story is not None
        return self.story

    def Why(self, request: Any, context: Any) -> operator_pb2.WhyResponse:
        self._begin("Why", request, context)
        found = self._found(request.ref, context).metadata
        told = operator_pb2.WorkloadDiagnosis(namespace=found.namespace, name=found.name)
        return operator_pb2.WhyResponse(workloads=[told], now_ms=now_ms())

    def Regions(self, request: Any, context: Any) -> operator_pb2.RegionsResponse:
        self._begin("Regions", request, context)
        return self.regions

    def Releases(self, request: Any, context: Any) -> operator_pb2.ReleasesResponse:
        self._begin("Releases", request, context)
        return self.releases

    def Drill(self, request: Any, context: Any) -> Iterator[operator_pb2.DrillResponse]:
        self._begin("Drill", request, context)
        for answer in self.drills.pop(0):
            if isinstance(answer, str):
                context.abort(grpc.StatusCode.UNAVAILABLE, answer)
            yield answer

    def EndDrill(self, request: Any, context: Any) -> operator_pb2.EndDrillResponse:
        self._begin("EndDrill", request, context)
        return operator_pb2.EndDrillResponse(message="ended")

    def ForgetMember(self, request: Any, context: Any) -> operator_pb2.ForgetMemberResponse:
        self._begin("ForgetMember", request, context)
        members = [m for region in self.regions.regions for m in region.members]
        if not any(member.name == request.member for member in members):
            self._fail(context, grpc.StatusCode.NOT_FOUND, "no such member", detail("NotFound"))
        return operator_pb2.ForgetMemberResponse(message="forgotten")

    def CreateJoinToken(self, request: Any, context: Any) -> operator_pb2.CreateJoinTokenResponse:
        self._begin("CreateJoinToken", request, context)
        return operator_pb2.CreateJoinTokenResponse(token="polder1.secret", expires_at_ms=now_ms())

    def Revoke(self, request: Any, context: Any) -> operator_pb2.RevokeResponse:
        self._begin("Revoke", request, context)
        return operator_pb2.RevokeResponse(closed_streams=1)

    def IssueOperator(self, request: Any, context: Any) -> operator_pb2.IssueOperatorResponse:
        self._begin("IssueOperator", request, context)
        csr = x509.load_der_x509_csr(request.csr)
        uri = f"spiffe://polder.test/operator/{request.name}"
        pem = self.authority.sign(csr.public_key(), uri, [])
        der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        root = self.authority.certificate.public_bytes(serialization.Encoding.DER)
        return operator_pb2.IssueOperatorResponse(certificate_chain=[der], trust_bundle=[root])

    def WhoAmI(self, request: Any, context: Any) -> operator_pb2.WhoAmIResponse:
        self._begin("WhoAmI", request, context)
        peer = context.auth_context()["x509_common_name"][0].decode()
        return operator_pb2.WhoAmIResponse(
            identity=f"spiffe://polder.test/operator/{peer}",
            roles=["admin"],
            server_version="0.1.0",
            member="m0",
            region="local",
            now_ms=now_ms(),
        )

    # --- the machinery ------------------------------------------------------------------------

    def _begin(self, name: str, request: Any, context: Any) -> None:
        self.calls.append((name, request))
        if name in self.unknown:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if self.refuse is not None:
            code, text = self.refuse
            self._fail(context, code, text, detail("Refused", "ask an admin"))

    def _found(self, ref: Any, context: Any) -> common_pb2.Resource:
        resource = self.resources.get((ref.kind, ref.namespace, ref.name))
        if resource is None:
            text = f"there is no {ref.kind} {ref.name!r}"
            self._fail(context, grpc.StatusCode.NOT_FOUND, text, detail("NotFound"))
        assert resource is not None
        return resource

    def _fail(self, context: Any, code: grpc.StatusCode, text: str, metadata: Any = ()) -> None:
        context.set_trailing_metadata(metadata)
        context.abort(code, text)

    def _tell(self, kind: Any, resource: common_pb2.Resource) -> None:
        for request, stream in self.watchers:
            if _matches(resource, request):
                stream.put(_change(kind, resource))


def _change(kind: Any, resource: common_pb2.Resource) -> operator_pb2.WatchResponse:
    copy = common_pb2.Resource()
    copy.CopyFrom(resource)
    return operator_pb2.WatchResponse(type=kind, resource=copy, now_ms=now_ms())


def _matches(resource: common_pb2.Resource, request: Any) -> bool:
    meta = resource.metadata
    return (
        resource.kind == request.kind
        and request.namespace in ("", meta.namespace)
        and getattr(request, "name", "") in ("", meta.name)
        and all(r.matches(meta.labels) for r in parse(request.label_selector))
    )


class FakeInstallation:
    """A running fake and what an operator needs to reach it."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.api = FakeOperatorApi(self.authority)
        self.server, self.port = self._serve(self.api)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _serve(self, api: FakeOperatorApi) -> tuple[grpc.Server, int]:
        uri = "spiffe://polder.test/region/local/orchestrator/m0"
        names = [x509.DNSName(SERVER_NAME), x509.IPAddress(ip_address("127.0.0.1"))]
        certificate, key = self.authority.issue(uri, names)
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], self.authority.pem, require_client_auth=True
        )
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(api, server)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return server, port

    def context(
        self,
        *,
        endpoints: list[str] | None = None,
        ca: bytes = b"",
        client: tuple[bytes, bytes] | None = None,
    ) -> dict[str, Any]:
        """A configuration document with one context."""
        from edgectl.config import context_document

        identity = client or self.authority.issue("spiffe://polder.test/operator/ada", [])
        import base64

        return context_document(
            "test",
            cluster={
                "endpoints": endpoints or [self.endpoint],
                "certificateAuthorityData": base64.b64encode(ca or self.authority.pem).decode(),
                "trustDomain": "polder.test",
                "serverName": SERVER_NAME,
            },
            certificate_pem=identity[0],
            key_pem=identity[1],
        )

    def stop(self) -> None:
        self.server.stop(grace=None).wait(timeout=5)
