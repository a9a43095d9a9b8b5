"""Tells systemd what the process does (sd_notify(3)): one datagram, no library."""

import logging
import os
import socket

log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """`READY=1`, `STOPPING=1`. Does nothing when systemd does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.connect(address)
            connection.sendall(state.encode())
    except OSError as error:
        log.warning("systemd could not be told %s: %s", state, error)
