"""Pure parts of the CRI adapter: translation, reasons, host ports, SPDY frames."""

import struct
import zlib
from dataclasses import replace

import pytest

from agent.runtime.cri import errors, hostports, spdy, translate
from agent.runtime.cri.hostports import Listener
from agent.runtime.cri.pb import api_pb2 as pb
from agent.runtime.port import ContainerSpec, ImageUser, PodSpec, PortMapping, Resources

POD = PodSpec("web-0", "shop", "u1", {"a": "b"}, {"c": "d"}, "/logs")


def test_sandbox_carries_label_ports_and_defaults() -> None:
    ports = (PortMapping(80, 8080), PortMapping(53, 5353, "UDP", "10.0.0.1"), PortMapping(9, 0))
    spec = PodSpec("web-0", "shop", "u1", {"a": "b"}, {"c": "d"}, "/logs", ports)
    config = translate.sandbox_config(spec)
    assert dict(config.labels) == {"a": "b", "polder.eu/managed": "true"}
    assert dict(config.annotations) == {
        "c": "d",
        "polder.eu/host-ports": "TCP//8080,UDP/10.0.0.1/5353",
    }
    assert [(p.protocol, p.host_port) for p in config.port_mappings] == [
        (pb.TCP, 8080),
        (pb.UDP, 5353),
    ]
    assert config.hostname == "web-0" and not config.HasField("dns_config")
    assert config.linux.security_context.namespace_options.pid == pb.CONTAINER


def test_host_ports_survive_the_annotation() -> None:
    ports = [PortMapping(0, 8080), PortMapping(0, 53, "UDP", "fd00::1")]
    assert translate.parse_host_ports(translate.format_host_ports(ports)) == ports
    assert translate.parse_host_ports("nonsense,TCP//x,,TCP//1/2") == []


def test_container_is_confined_and_labelled() -> None:
    config = translate.container_config(ContainerSpec("app", "i", 2), POD)
    security = config.linux.security_context
    assert config.log_path == "app_2.log" and dict(config.labels) == {"polder.eu/managed": "true"}
    assert security.no_new_privs and not security.privileged
    assert security.seccomp.profile_type == pb.SecurityProfile.RuntimeDefault
    assert "/proc/kcore" in security.masked_paths and "/proc/sys" in security.readonly_paths
    assert not security.HasField("run_as_user")


def test_all_capabilities_but_the_given_ones_are_dropped() -> None:
    spec = ContainerSpec("app", "i", 0, capabilities=("NET_ADMIN",), unconfined=True)
    security = translate.container_config(spec, POD).linux.security_context
    assert list(security.capabilities.drop_capabilities) == ["ALL"]
    assert list(security.capabilities.add_capabilities) == ["NET_ADMIN"]
    assert security.seccomp.profile_type == pb.SecurityProfile.Unconfined
    assert security.no_new_privs, "whatever else is given"


def test_a_pod_may_share_the_nodes_namespaces() -> None:
    ports = (PortMapping(80, 80),)
    spec = replace(POD, ports=ports, host_network=True, host_pid=True, host_ipc=True)
    config = translate.sandbox_config(spec)
    options = config.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (pb.NODE, pb.NODE, pb.NODE)
    assert not config.port_mappings and not config.hostname and not config.linux.sysctls
    assert config.annotations["polder.eu/host-ports"] == "TCP//80", "the port is taken all the same"
    container = translate.container_config(ContainerSpec("app", "i", 0), spec)
    assert container.linux.security_context.namespace_options == options
    sandbox = pb.PodSandbox(id="p", annotations=config.annotations)
    assert translate.pod_state(sandbox, "", ()).ip == "127.0.0.1"


def test_low_ports_are_open_in_a_network_of_its_own() -> None:
    config = translate.sandbox_config(POD)
    assert dict(config.linux.sysctls) == {"net.ipv4.ip_unprivileged_port_start": "0"}
    assert translate.pod_state(pb.PodSandbox(id="p"), "", ()).ip == ""


def test_users_of_images() -> None:
    assert translate.image_user(pb.Image()) == ImageUser()
    assert translate.image_user(pb.Image(uid=pb.Int64Value(value=0))) == ImageUser(uid=0)
    assert translate.image_user(pb.Image(username="app")) == ImageUser(name="app")


def test_user_zero_is_said_explicitly() -> None:
    spec = ContainerSpec("app", "i", 0, run_as_user=0)
    config = translate.container_config(spec, POD)
    assert config.linux.security_context.HasField("run_as_user")


@pytest.mark.parametrize(
    ("resources", "shares", "quota"),
    [
        (Resources(), 0, 0),
        (Resources(cpu_millis=1000, cpu_limit_millis=1500), 1024, 150_000),
        (Resources(cpu_millis=1, cpu_limit_millis=1), 2, 1_000),
    ],
)
def test_cpu(resources: Resources, shares: int, quota: int) -> None:
    limits = translate.linux_resources(resources)
    assert (limits.cpu_shares, limits.cpu_quota) == (shares, quota)
    assert limits.cpu_period == (100_000 if quota else 0)


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("SIGTERM", pb.SIGNAL_SIGTERM),
        ("quit", pb.SIGNAL_SIGQUIT),
        ("SIGRTMIN+3", pb.SIGNAL_SIGRTMINPLUS3),
        ("", pb.SIGNAL_RUNTIME_DEFAULT),
        ("SIGNONSENSE", pb.SIGNAL_RUNTIME_DEFAULT),
    ],
)
def test_stop_signal(name: str, signal: int) -> None:
    spec = ContainerSpec("app", "i", 0, stop_signal=name)
    assert translate.container_config(spec, POD).stop_signal == signal


def test_times_of_what_has_not_happened() -> None:
    go_zero_time = -6795364578871345152
    assert translate.seconds(0) == translate.seconds(go_zero_time) == 0.0
    assert translate.seconds(1_500_000_000) == 1.5


def test_a_short_process_does_not_end_before_it_starts() -> None:
    status = pb.ContainerStatus(id="c", started_at=3_000_000_001, finished_at=3_000_000_000)
    state = translate.container_state(status, "p")
    assert state.started_at == state.finished_at == 3.0


@pytest.mark.parametrize(
    ("name", "version", "config", "objects"),
    [
        ("containerd", "1.6.20~ds1", "", True),
        ("containerd", "v1.7.3", '{"enableCDI":false}', True),
        ("containerd", "v1.7.3", '{"enableCDI": true}', False),
        ("containerd", "v2.0.1", "", False),
        ("cri-o", "1.28.0", "", False),
    ],
)
def test_cdi_is_refused_where_it_would_be_ignored(
    name: str, version: str, config: str, objects: bool
) -> None:
    assert bool(translate.cdi_objection(name, version, config)) is objects


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("failed to pull: no match for platform in manifest sha256:1: not found", "ImagePlatform"),
        ("pull access denied, repository does not exist or may require auth", "ImageAuth"),
        ("unexpected status code [manifests 1]: 401 Unauthorized", "ImageAuth"),
        ("dial tcp 127.0.0.1:1: connect: connection refused", "ImageRegistry"),
        ("dial tcp: lookup polder.local: no such host", "ImageRegistry"),
        ("unexpected status code [manifests 1]: 503 Service Unavailable", "ImageRegistry"),
        ("429 Too Many Requests - Server message: toomanyrequests", "ImageRegistry"),
        ('failed to resolve reference "h/none:1": h/none:1: not found', "ImageNotFound"),
        ("manifest unknown", "ImageNotFound"),
        ("something new", "ImageRegistry"),
    ],
)
def test_reasons_of_failed_pulls(message: str, reason: str) -> None:
    assert errors.image_reason(message) == reason


def test_long_messages_keep_their_cause() -> None:
    message = errors.tidy("rpc error: code = Unknown desc = " + "wrapping: " * 200 + "the cause")
    assert len(message) < 500 and message.endswith("the cause") and "rpc error" not in message


PROC_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   2: 0100007F:A0B0 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0
"""
PROC_TCP6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A
   1: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A
   2: 00000000000000000000000001000000:0052 00000000000000000000000000000000:0000 0A
"""


def test_listeners_are_read_from_proc() -> None:
    assert hostports.parse_table(PROC_TCP, "TCP", "0A") == [
        Listener("TCP", "127.0.0.1", 8080),
        Listener("TCP", "", 22),
    ]
    assert hostports.parse_table(PROC_TCP6, "TCP", "0A") == [
        Listener("TCP", "", 80),
        Listener("TCP", "127.0.0.1", 81),
        Listener("TCP", "::1", 82),
    ]


@pytest.mark.parametrize(
    ("port", "words"),
    [
        (PortMapping(1, 8080), "listens on 127.0.0.1"),
        (PortMapping(1, 8080, "TCP", "127.0.0.1"), "listens on 127.0.0.1"),
        (PortMapping(1, 8080, "TCP", "10.0.0.1"), ""),
        (PortMapping(1, 8080, "UDP"), ""),
        (PortMapping(1, 22, "TCP", "10.0.0.1"), "listens on every address"),
        (PortMapping(1, 443), "taken by pod web"),
        (PortMapping(1, 0), ""),
    ],
)
def test_host_port_conflicts(port: PortMapping, words: str) -> None:
    bound = [Listener("TCP", "127.0.0.1", 8080), Listener("TCP", "", 22)]
    complaint = hostports.conflict([port], [("web", PortMapping(0, 443))], bound)
    assert words in complaint and bool(words) == bool(complaint)


def test_spdy_streams_have_odd_ids_and_one_compression_context() -> None:
    opener, unpack = spdy.StreamOpener(), zlib.decompressobj()
    for number, kind in ((1, "error"), (3, "stdout")):
        stream, frame = opener.open({"streamType": kind})
        head = spdy.decode_header(frame[:8])
        assert (stream, head.kind, head.size) == (number, spdy.SYN_STREAM, len(frame) - 8)
        block = unpack.decompress(frame[18:])
        name = b"streamtype"
        expected = struct.pack(">II", 1, len(name)) + name
        assert block == expected + struct.pack(">I", len(kind)) + kind.encode()


def test_spdy_data_frames() -> None:
    frame = spdy.data(5, b"abc", fin=True)
    head = spdy.decode_header(frame[:8])
    assert (head.kind, head.stream, head.size, head.fin) == (0, 5, 3, True)
    assert frame[8:] == b"abc"
    with pytest.raises(ValueError, match="not a SPDY/3 frame"):
        spdy.decode_header(b"\x80\x02\x00\x01\x00\x00\x00\x00")
