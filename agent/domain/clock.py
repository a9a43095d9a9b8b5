"""When a box's clock cannot be right. Pure; `edge-agent join` and the doctor ask.

A board without a battery wakes up in 1970, or at the moment its image was made. Certificates are
not valid then, and no handshake would say why.
"""

# This version did not exist before 2026-01-01.
EARLIEST = 1_767_225_600.0
FIX = (
    "set the clock, or let it be set: `timedatectl set-ntp true` or `apt install chrony`; "
    "`date -s '2026-11-22 12:00'` by hand will do to join"
)


def is_impossible(now: float) -> bool:
    """`now` in unix seconds."""
    return now < EARLIEST
