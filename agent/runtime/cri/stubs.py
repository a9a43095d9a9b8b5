"""Client stubs for the CRI services, made from the descriptors alone.

The generated `api_pb2_grpc` does the same, but its servicers and helpers, which a client never
uses, cost the agent over a megabyte of its 40. Its types still describe what is made here.
"""

from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from agent.runtime.cri.pb import api_pb2 as pb

if TYPE_CHECKING:  # the generated module has these in its .pyi only
    from agent.runtime.cri.pb.api_pb2_grpc import ImageServiceAsyncStub, RuntimeServiceAsyncStub


class _Stub:
    """One callable attribute for each RPC of the service."""

    def __init__(self, channel: grpc.aio.Channel, service: ServiceDescriptor) -> None:
        for method in service.methods:
            make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(
                f"/{service.full_name}/{method.name}",
                request_serializer=getattr(pb, method.input_type.name).SerializeToString,
                response_deserializer=getattr(pb, method.output_type.name).FromString,
            )
            setattr(self, method.name, call)


def runtime_service(channel: grpc.aio.Channel) -> "RuntimeServiceAsyncStub":
    service = pb.DESCRIPTOR.services_by_name["RuntimeService"]
    return cast("RuntimeServiceAsyncStub", _Stub(channel, service))


def image_service(channel: grpc.aio.Channel) -> "ImageServiceAsyncStub":
    service = pb.DESCRIPTOR.services_by_name["ImageService"]
    return cast("ImageServiceAsyncStub", _Stub(channel, service))
