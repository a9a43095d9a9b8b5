"""Get and List. Answers come from the mirror; after an Apply the caller sees its own write."""

import base64
import binascii
import json
from collections.abc import Callable

from orchestrator.api.catalog import Catalog, is_kind, shows_secrets
from orchestrator.api.selectors import parse_selector
from orchestrator.api.wire import to_wire
from orchestrator.authz import Caller, may_read
from orchestrator.refusals import Refused, forbidden, invalid, not_found
from polder.manifest import KINDS
from polder.v1 import common_pb2, operator_pb2

PAGE_ITEMS_MAX = 1_000
PAGE_BYTES_MAX = 3 << 20  # a client accepts messages of 4 MiB unless told otherwise


class Reading:
    """Get and List over a catalog."""

    def __init__(self, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._catalog = catalog
        self._clock = clock

    def get(self, caller: Caller, request: operator_pb2.GetRequest) -> operator_pb2.GetResponse:
        """Raises Refused (NotFound, Forbidden, BadKind)."""
        ref = checked_ref(request.ref)
        if not may_read(caller, ref.kind, ref.namespace, ref.name):
            raise forbidden(f"{caller} may not read {describe_ref(ref)}")
        shown = self._catalog.get(ref.kind, ref.namespace, ref.name)
        if shown is None:
            raise missing(ref)
        resource = to_wire(shown.record, shown.status, secrets=shows_secrets(caller, shown))
        return operator_pb2.GetResponse(resource=resource, now_ms=int(self._clock() * 1000))

    def list(self, caller: Caller, request: operator_pb2.ListRequest) -> operator_pb2.ListResponse:
        """One page. Raises Refused (Forbidden, BadKind, BadSelector, BadToken)."""
        check_scope(caller, request.kind, request.namespace)
        selector = parse_selector(request.label_selector)
        if request.limit < 0:
            raise invalid(f"a limit of {request.limit}")
        limit = min(request.limit or PAGE_ITEMS_MAX, PAGE_ITEMS_MAX)
        response = operator_pb2.ListResponse(
            revision=self._catalog.cache.revision, now_ms=int(self._clock() * 1000)
        )
        size, last = 0, None
        after = _parse_token(request.continue_token)
        for key in self._catalog.keys(caller, request.kind, request.namespace, after):
            if last is not None and (len(response.resources) >= limit or size >= PAGE_BYTES_MAX):
                response.continue_token = _token(last)
                return response
            shown = self._catalog.get(request.kind, *key)
            last = key
            if shown is None or not selector.matches(shown.record.labels):
                continue
            resource = to_wire(shown.record, shown.status, secrets=shows_secrets(caller, shown))
            size += resource.ByteSize()
            response.resources.append(resource)
        return response


def checked_ref(ref: common_pb2.ResourceRef) -> common_pb2.ResourceRef:
    """With the default namespace filled in. Raises Refused (BadKind, InvalidArgument)."""
    check_kind(ref.kind)
    if not ref.name:
        raise invalid("the request names no resource")
    namespaced = KINDS[ref.kind].namespaced
    if ref.namespace and not namespaced:
        raise invalid(f"{KINDS[ref.kind].plural} belong to no namespace")
    namespace = (ref.namespace or "default") if namespaced else ""
    return common_pb2.ResourceRef(kind=ref.kind, namespace=namespace, name=ref.name)


def check_kind(kind: str) -> None:
    if not is_kind(kind):
        raise invalid(f"{kind[:80]!r} is not a kind", f"known: {', '.join(KINDS)}", "BadKind")


def check_scope(caller: Caller, kind: str, namespace: str) -> None:
    """Raises Refused when a kind is unknown, or a namespace is asked for that is not the caller's.

    Without a namespace a caller sees what it may see; that is never an error.
    """
    check_kind(kind)
    if namespace and not KINDS[kind].namespaced:
        raise invalid(f"{KINDS[kind].plural} belong to no namespace")
    if (namespace or kind == "Operator") and not may_read(caller, kind, namespace, ""):
        where = f" in namespace {namespace}" if namespace else ""
        raise forbidden(f"{caller} may not read {KINDS[kind].plural}{where}")


def describe_ref(ref: common_pb2.ResourceRef) -> str:
    where = f" in namespace {ref.namespace}" if ref.namespace else ""
    return f"{ref.kind} {ref.name}{where}"


def missing(ref: common_pb2.ResourceRef) -> Refused:
    return not_found(f"there is no {describe_ref(ref)}")


def _token(key: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _parse_token(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    try:
        namespace, name = json.loads(base64.urlsafe_b64decode(text))
        return str(namespace), str(name)
    except (binascii.Error, ValueError, TypeError) as error:
        raise invalid("the continue token is none of ours", reason="BadToken") from error
