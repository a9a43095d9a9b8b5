"""Sessions at nodes of a site, kept for the next command. Called by `link`.

To prove itself and to check an operator costs a box two programs and a second, and an entry in its
journal; operators type many commands. So what `Enter` gave is kept until it ends, ten minutes at
most, beside the operator's key and as secret: for one certificate of a node and one of an operator.
That of a break-glass token is not: each use of one is to be in the journal.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from edgectl.config_file import write_private
from edgectl.site.access import Access

MARGIN_S = 15.0
"""Before its end a session is as good as over: the command is to be done with it."""
KEPT_BYTES_MAX = 64 << 10
_STALE_S = 900.0


@dataclass(frozen=True, slots=True)
class Session:
    """What is known of a node that let us in. `until`: unix seconds, by this machine's clock."""

    node: str
    site: str
    by: str
    roles: tuple[str, ...]
    warnings: tuple[str, ...]
    until: float
    key: str = field(repr=False)


class Sessions:
    """Below a directory. Where nothing can be written nothing is kept; that is no failure."""

    def __init__(self, directory: Path, access: Access) -> None:
        self._directory = directory
        self._keeps = access.grant is None
        self._who = sha256(access.certificate_pem).digest()

    def find(self, certificate_der: bytes) -> Session | None:
        """One that still lasts, at the node with this certificate."""
        try:
            raw = self._path(certificate_der).read_bytes()[:KEPT_BYTES_MAX]
            found = json.loads(raw)
            pairs = {key: tuple(found[key]) for key in ("roles", "warnings")}
            session = Session(**{**found, **pairs})
            lasts = session.until - MARGIN_S > time.time()
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return session if self._keeps and lasts else None

    def keep(self, certificate_der: bytes, session: Session) -> None:
        if not self._keeps:
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            text = json.dumps(asdict(session))
            write_private(self._path(certificate_der), text, overwrite=True)

    def _path(self, certificate_der: bytes) -> Path:
        return self._directory / f"{sha256(self._who + certificate_der).hexdigest()}.json"

    def _sweep(self) -> None:
        for path in self._directory.glob("*.json"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()


def default_directory() -> Path:
    """As the XDG Base Directory Specification has it."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "polder" / "sessions"
