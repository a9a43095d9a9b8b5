"""base64url without padding (RFC 4648, 5), as it stands in what people copy and paste.

Used by `tokens.py`, `local_access.py` and `release.py`.
"""

import base64

UNREADABLE = (ValueError, KeyError, TypeError, RecursionError)
"""What reading a JSON of such bytes may raise when somebody else wrote it, or it was cut off."""


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    """Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
