"""What of an emulated process is the guest's, and what an emulated agent is told of images."""

import json

from agent.runtime.cri.pb import api_pb2
from bench.footprint_arm import Passing, Sizes, sizes

# Of a program that holds 50 MiB under qemu 7.2: its interpreter, its C library, its heap; then
# qemu's own heap, what it translated, and itself.
SMAPS = """\
00400000-00916000 r--p 00000000 00:25 1001 /tmp/root/usr/bin/python3.11
Pss:                2752 kB
VmFlags: rd mr mw me
5500990000-5500b1c000 r--p 00000000 00:25 1002 /tmp/root/usr/lib/aarch64-linux-gnu/libc.so.6
Pss:                1152 kB
VmFlags: rd mr mw me
5500baa000-5504011000 rw-p 00000000 00:00 0
Pss:               52076 kB
Anonymous:         52076 kB
VmFlags: rd wr mr mw me ac
555558742000-555558a82000 rw-p 00000000 00:00 0 [heap]
Pss:                3208 kB
Anonymous:          3208 kB
VmFlags: rd wr mr mw me ac
7fea8c000000-7fea93fff000 rwxp 00000000 00:00 0
Pss:               12288 kB
Anonymous:         12288 kB
VmFlags: rd wr ex mr mw me ac
7fea9c628000-7fea9caa7000 r-xp 00228000 fe:00 1016 /usr/bin/qemu-aarch64-static
Pss:                3104 kB
VmFlags: rd ex mr mw me
"""


def test_the_guests_memory_is_told_from_the_emulators() -> None:
    assert sizes(SMAPS) == Sizes(guest=2752 + 1152 + 52076, emulator=3208 + 12288 + 3104)


def test_images_of_this_machine_are_said_to_be_for_the_agents() -> None:
    info = json.dumps({"chainID": "x", "imageSpec": {"architecture": "amd64", "os": "linux"}})
    status = api_pb2.ImageStatusResponse(image=api_pb2.Image(id="sha256:1"), info={"info": info})
    told = api_pb2.ImageStatusResponse.FromString(Passing.renamed(status.SerializeToString()))
    assert told.image.id == "sha256:1"
    spec = json.loads(told.info["info"])["imageSpec"]
    assert spec == {"architecture": "arm64", "os": "linux"}
    absent = api_pb2.ImageStatusResponse().SerializeToString()
    assert Passing.renamed(absent) == absent
