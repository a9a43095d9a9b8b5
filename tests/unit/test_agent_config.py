"""Settings: strict, with the line of what is wrong; flags over variables over file."""

import json
import logging
from pathlib import Path

import pytest

from agent.config import AgentConfig, InvalidConfig, Share, from_plain, load, parse_file, to_plain
from agent.log import JsonFormatter, LogfmtFormatter

WHOLE = """\
state_dir = "/srv/polder"
runtime_socket = "unix:///run/crio/crio.sock"
log_level = "debug"
host_paths = ["/srv/data", "/etc/ssl/certs:ro", "/dev/ttyUSB0"]
site_listen = "10.0.7.3:7445"
site_advertise = "10.0.7.3,box-1.example:9000,[2001:db8::7]:9000,2001:db8::8"
local_listen = ""
local_advertise = "box-1.example"

[reserved]
cpu = "250m"
memory = "10%"
disk = "5Gi"

[devices]
"polder.eu/gpu" = ["nvidia.com/gpu"]
"acme.example/radio" = ["/dev/radio*"]
"""


def test_a_whole_file() -> None:
    config = parse_file(WHOLE)
    assert config.state_dir == Path("/srv/polder")
    assert config.runtime_socket == Path("/run/crio/crio.sock")
    assert config.reserved.cpu == Share(250)
    assert config.reserved.memory.of(1000) == 100
    assert config.reserved.disk == Share(5 << 30)
    assert (config.local_listen, config.local_advertise) == ("", "box-1.example")
    assert config.host_paths == ("/srv/data", "/etc/ssl/certs:ro", "/dev/ttyUSB0")
    assert config.devices["acme.example/radio"] == ("/dev/radio*",)
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('state_dri = "/x"', "agent.toml:1: state_dri: unknown setting"),
        ('\n[reserved]\ncpu = "1"\nmem = "1Gi"', "agent.toml:4: reserved.mem: unknown setting"),
        ('[reserved]\ncpu = "-1"', "agent.toml:2: reserved.cpu: '-1' is negative"),
        ('[reserved]\nmemory = "100%"', "agent.toml:2: reserved.memory: '100%' is not a share"),
        ("[labels]\na = 1", "agent.toml:1: labels: unknown setting"),
        ('state_dir = "relative"', "agent.toml:1: state_dir: 'relative' is not an absolute path"),
        ('log_level = "loud"', "agent.toml:1: log_level: 'loud' is none of"),
        (
            '[devices]\n"polder.eu/gpu" = "/dev/x"',
            "agent.toml:2: devices.polder.eu/gpu: expected a",
        ),
        ('[devices]\n"polder.eu/gpu" = ["x"]', "neither a path below /dev nor a CDI kind"),
        ('[devices]\n"gpu" = []', "agent.toml:2: devices.gpu: not a resource name"),
        ('site_listen = "7445"', "agent.toml:1: site_listen: '7445' is not HOST:PORT"),
        ('site_listen = "::1:7445"', "is not HOST:PORT"),
        ('site_listen = "0.0.0.0:0"', "is not HOST:PORT"),
        ('local_listen = "7446"', "agent.toml:1: local_listen: '7446' is not HOST:PORT"),
        ('site_advertise = "a b"', "agent.toml:1: site_advertise: 'a b' is not a list of hosts"),
        ('host_paths = "/srv"', "agent.toml:1: host_paths: expected a list of paths"),
        ('host_paths = ["srv"]', "agent.toml:1: host_paths: 'srv' is no absolute path"),
        ('host_paths = ["/srv/../etc"]', "without '..'"),
        ('host_paths = ["//"]', "would give away the whole box"),
        ("reserved = 3", "agent.toml:1: reserved: expected a table"),
        ("log_level = x", "agent.toml: Invalid value (at line 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidConfig) as error:
        parse_file(text)
    assert message in str(error.value)


def test_flags_win_over_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('log_level = "error"\nlog_format = "json"\nstate_dir = "/a"')
    environ = {"POLDER_LOG_LEVEL": "warning", "POLDER_STATE_DIR": "/b"}
    config = load(file, environ, state_dir="/c", log_dir=None)
    assert config.state_dir == Path("/c")
    assert config.log_level == "warning"
    assert config.log_format == "json"
    assert config.log_dir == AgentConfig().log_dir


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no such file"):
        load(tmp_path / "none.toml", {})
    with pytest.raises(InvalidConfig, match="no such file"):
        load(None, {"POLDER_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(InvalidConfig, match="POLDER_LOG_LEVEL: 'x' is none of"):
        file = tmp_path / "agent.toml"
        file.write_text("")
        load(file, {"POLDER_LOG_LEVEL": "x"})


def test_defaults_reserve_the_larger_of_an_amount_and_a_share() -> None:
    reserved = AgentConfig().reserved
    assert reserved.cpu.of(1000) == 100
    assert reserved.cpu.of(16_000) == 800
    assert reserved.memory.of(2 << 30) == 256 << 20
    assert reserved.memory.of(100 << 20) == 100 << 20


def test_log_lines_are_structured_and_bounded() -> None:
    record = logging.makeLogRecord(
        {"msg": "hello %s", "args": ("you",), "name": "x", "levelname": "INFO", "n": 3,
         "long": "y" * 5000, "text": 'a "b"\nc'}
    )  # fmt: skip
    facts = json.loads(JsonFormatter().format(record))
    assert facts["message"] == "hello you" and facts["n"] == 3 and len(facts["long"]) < 2100
    line = LogfmtFormatter().format(record)
    assert "\n" not in line and 'message="hello you"' in line and "n=3" in line
