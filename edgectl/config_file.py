"""Reading and writing the configuration file. Called by `Invocation` and by `edgectl config`.

The file holds a private key: it is created with mode 0600, replaced atomically, and edited under a
lock, so that two shells cannot lose each other's change.
"""

import contextlib
import fcntl
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgectl import config
from edgectl.errors import CliError

ENVIRONMENT = "EDGECTL_CONFIG"
MAX_CONFIG_BYTES = 4 << 20
MAX_KEY_FILE_BYTES = 1 << 20


def default_path(explicit: str = "") -> Path:
    """--config, else $EDGECTL_CONFIG, else ~/.config/polder/config.yaml."""
    given = explicit or os.environ.get(ENVIRONMENT, "")
    if given:
        return Path(given).expanduser()
    return Path.home() / ".config" / "polder" / "config.yaml"


def load(path: Path) -> config.Document:
    """An absent file is an empty configuration. Raises CliError."""
    try:
        raw = read_bounded(path, MAX_CONFIG_BYTES)
    except FileNotFoundError:
        return config.empty()
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
    return config.checked(parse(raw, str(path)), str(path))


def parse(raw: bytes, source: str) -> object:
    """JSON or YAML. Raises CliError with the line."""
    text = raw.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(text)
    from edgectl import yaml_nodes

    nodes, problems = yaml_nodes.read_documents(text)
    if problems:
        place = f"{problems[0].path}: " if problems[0].path else ""
        raise CliError(f"{source}:{problems[0].line}: {place}{problems[0].message}")
    return yaml_nodes.plain(nodes[0]) if nodes else None


def connection(path: Path, document: config.Document, context_name: str) -> config.Connection:
    """The context's connection; warns on stderr when others can read the key."""
    secret_files = [path]

    def read(name: str) -> bytes:
        named = path.parent / Path(name).expanduser()
        secret_files.append(named)
        try:
            return read_bounded(named, MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise CliError(f"{named}: {error.strerror}", f"{path} names this file") from error

    found = config.connection(document, str(path), context_name, read)
    for file in secret_files:
        _warn_if_exposed(file)
    return found


def update(path: Path, change: Callable[[config.Document], config.Document]) -> config.Document:
    """Apply a pure edit to the file. Raises CliError; on an error the file is as it was."""
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(path.parent):
            changed = change(load(path))
            text = json.dumps(changed, indent=2) + "\n" if _is_json(path) else render(changed)
            write_private(path, text, overwrite=True)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
    return changed


def render(document: Any) -> str:
    """YAML with keys in the order that people expect."""
    import yaml

    text: str = yaml.dump(
        document, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return text


def write_private(path: Path, text: str, *, overwrite: bool) -> None:
    """Atomic and durable, mode 0600. Raises OSError, FileExistsError without `overwrite`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:  # mkstemp makes it 0600
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_bounded(path: Path, limit: int) -> bytes:
    """Raises OSError, CliError when the file is larger."""
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise CliError(f"{path}: is larger than {limit >> 20} MiB")
    return raw


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_json(path: Path) -> bool:
    """What was JSON stays JSON: other programs read the orchestrator's context files."""
    try:
        return read_bounded(path, MAX_CONFIG_BYTES).lstrip().startswith(b"{")
    except FileNotFoundError:
        return False


def _warn_if_exposed(path: Path) -> None:
    try:
        status = path.stat()
    except OSError:
        return
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 and _holds_key(path):
        mode = stat.S_IMODE(status.st_mode)
        print(
            f"warning: {path} holds a private key and others may read it (mode {mode:04o}); "
            f"chmod 600 {path}",
            file=sys.stderr,
        )


def _holds_key(path: Path) -> bool:
    raw = path.read_bytes()
    return any(word in raw for word in (b"PRIVATE KEY", b"clientKeyData", b"client-key-data"))
