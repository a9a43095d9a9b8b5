"""Transactions in etcd's words: the port's compares and ops there, etcd's verdict back.

Called by the adapter. etcd says only that some compare failed. Which one is read in the same step,
by ranges in the branch that a failed transaction takes.
"""

from collections.abc import Sequence

from orchestrator.store.etcd.pb import kv_pb2
from orchestrator.store.etcd.pb import rpc_pb2 as pb
from orchestrator.store.port import Compare, CompareTarget, Op, Put

# etcd's default --max-request-bytes, less what it wraps around a request.
REQUEST_BYTES_MAX = 1_572_864 - 512


def build(
    root: bytes, compares: Sequence[tuple[bytes, Compare]], ops: Sequence[tuple[bytes, Op]]
) -> pb.TxnRequest:
    """The request. Its failure branch is empty where etcd's limit leaves no room for it."""
    request = pb.TxnRequest(
        compare=[_compare(root + key, compare) for key, compare in compares],
        success=[_op(root + key, op) for key, op in ops],
        failure=lookups(root, compares),
    )
    if not ops:
        # etcd answers from the member's own state, which may be old, unless one range objects.
        look = pb.RangeRequest(key=root, count_only=True)
        request.success.append(pb.RequestOp(request_range=look))
    if request.ByteSize() > REQUEST_BYTES_MAX:
        del request.failure[:]
    return request


def lookups(
    root: bytes, compares: Sequence[tuple[bytes, Compare]], revision: int = 0
) -> list[pb.RequestOp]:
    """One range for each key that is compared, at a revision (0: the newest)."""
    return [
        pb.RequestOp(
            request_range=pb.RangeRequest(
                key=root + key, keys_only=not with_value, revision=revision
            )
        )
        for key, with_value in _compared(compares).items()
    ]


def failed(
    compares: Sequence[tuple[bytes, Compare]], responses: Sequence[pb.ResponseOp]
) -> tuple[Compare, ...]:
    """Those that do not hold, by the answers to `lookups`."""
    found: dict[bytes, kv_pb2.KeyValue | None] = {}
    for key, response in zip(_compared(compares), responses, strict=True):
        kvs = response.response_range.kvs
        found[key] = kvs[0] if kvs else None
    return tuple(compare for key, compare in compares if not _holds(compare, found[key]))


def _compared(compares: Sequence[tuple[bytes, Compare]]) -> dict[bytes, bool]:
    """Every key once, in order, and whether its value is asked for."""
    keys: dict[bytes, bool] = {}
    for key, compare in compares:
        keys[key] = keys.get(key, False) or compare.target is CompareTarget.VALUE
    return keys


def _holds(compare: Compare, kv: kv_pb2.KeyValue | None) -> bool:
    if compare.target is CompareTarget.VALUE:
        return kv is not None and kv.value == compare.expected
    if kv is None:
        return compare.expected == 0
    if compare.target is CompareTarget.VERSION:
        return kv.version == compare.expected
    return kv.mod_revision == compare.expected


def _compare(key: bytes, compare: Compare) -> pb.Compare:
    expected = compare.expected
    if isinstance(expected, bytes):
        return pb.Compare(target=pb.Compare.VALUE, key=key, value=expected)
    if compare.target is CompareTarget.VERSION:
        return pb.Compare(target=pb.Compare.VERSION, key=key, version=expected)
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=expected)


def _op(key: bytes, op: Op) -> pb.RequestOp:
    if isinstance(op, Put):
        put = pb.PutRequest(key=key, value=op.value, lease=op.lease)
        return pb.RequestOp(request_put=put)
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
