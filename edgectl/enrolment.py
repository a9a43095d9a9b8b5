"""What a pallet of boxes is enrolled with: for each a token, and seeds that bring it onto the box.

`edgectl/verbs/token.py` writes them. The package of the agent joins by itself when it finds a token
at TOKEN_PATH (`edge-join.service`), so a seed only has to put it there:

    OUT/edge-001/user-data, meta-data    of cloud-init, as a volume labelled CIDATA (NoCloud)
    OUT/edge-001/preseed.cfg             of Debian's installer, from a USB stick
    OUT/edge-001/token                   alone
"""

from collections.abc import Mapping

TOKEN_PATH = "/etc/polder/join-token"  # noqa: S105 - a file name
COUNT_MAX = 1000
README = """\
One folder for each box. They hold secrets until the boxes have joined: keep them to yourself, and
delete them afterwards. A token is good once, for the one node that it names.

Put the agent's package beside (polder-agent_*_amd64.deb or _arm64.deb), unless the image has it.

cloud-init   make a small FAT file system labelled CIDATA on a USB stick, and copy the folder's
             user-data and meta-data, and the package, to its top. `instance-id` is the node's name.
installer    copy preseed.cfg and the package to the top of the stick that Debian's installer boots
             from (file=/hd-media/preseed.cfg, or /cdrom/preseed.cfg). It answers the host's name
             and brings agent and token; partitions and users are asked for, or in your own file.
by hand      edge-agent join --token-file token
"""
_PACKAGE = 'polder-agent_*_"$(dpkg --print-architecture)".deb'


def names(prefix: str, first: int, count: int) -> list[str]:
    """Of the nodes, numbered with three digits or as many as the last one has."""
    width = max(3, len(str(first + count - 1)))
    return [f"{prefix}{number:0{width}}" for number in range(first, first + count)]


def seeds(node: str, token: str) -> Mapping[str, str]:
    """Text by file name, for one box. Neither node nor token hold what YAML or sh would mind."""
    return {
        "token": f"{token}\n",
        "meta-data": f"instance-id: {node}\nlocal-hostname: {node}\n",
        "user-data": _user_data(node, token),
        "preseed.cfg": _preseed(node, token),
    }


def _user_data(node: str, token: str) -> str:
    return f"""\
#cloud-config
hostname: {node}
preserve_hostname: false
write_files:
  - path: {TOKEN_PATH}
    owner: root:root
    permissions: '0600'
    content: |
      {token}
runcmd:
  - |
    if ! [ -x /usr/bin/edge-agent ]; then
      mkdir -p /run/polder-seed
      mount -o ro LABEL=CIDATA /run/polder-seed
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq /run/polder-seed/{_PACKAGE}
      umount /run/polder-seed
    fi
  - systemctl start --no-block edge-join.service
"""


def _preseed(node: str, token: str) -> str:
    return f"""\
#_preseed_V1
d-i netcfg/get_hostname string {node}
d-i netcfg/hostname string {node}
d-i clock-setup/ntp boolean true
d-i preseed/late_command string \\
    mkdir -p /target/etc/polder /target/var/cache/polder; \\
    (umask 077; echo '{token}' > /target{TOKEN_PATH}); \\
    for from in /hd-media /cdrom /media; do \\
        cp "$from"/polder-agent_*.deb /target/var/cache/polder/ 2>/dev/null || true; \\
    done; \\
    in-target sh -c 'apt-get install -y /var/cache/polder/{_PACKAGE}; rm -r /var/cache/polder'
"""
