"""The node's identity on disk, and the client of the one-shot cryptography process.

`agent/join.py` fills the store, `agent/session.py` reads and renews it, `agent/main.py` shows it.
Nothing here imports cryptography: whatever needs it runs in `agent/credentials.py`.

    STATE/identity -> identities/000002      the symlink is what is in use
    STATE/identities/000002/key.pem          private key, mode 0600
                            chain.pem        leaf first
                            roots.pem        the trust bundle
                            endpoints.json   mTLS addresses
                            node.json        who we are, serial, validity

New credentials are written whole into a new directory and the symlink is replaced by rename(2), so
that a crash at any point leaves a key and a certificate that belong together.
"""

import asyncio
import base64
import binascii
import json
import shutil
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.durable import sync_directory, write_synced
from agent.plan_verifier import PlanRejected
from polder.identity import InvalidIdentity, NodeId, parse
from polder.v1 import plan_pb2

CALL_TIMEOUT_S = 20.0
MAX_ENDPOINTS = 64
# Anybody who reaches the box can have these run: the agent and its replicas go first.
_FOR_STRANGERS = frozenset({"sign", "verify-operator", "verify-break-glass", "verify-overrides"})
_NICE = 5
_PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
_PEM_END = "-----END CERTIFICATE-----"
_NODE_FILES = ("key.pem", "chain.pem", "roots.pem", "endpoints.json", "node.json")


class IdentityFailure(Exception):
    """The identity cannot be read, made or replaced; the message says what to do.

    IdentityFailure
     +- NotJoined           there is none: `edge-agent join`
     +- CredentialsRefused  the cryptography process says no; `reason` is CamelCase
    """


class NotJoined(IdentityFailure): ...


class CredentialsRefused(IdentityFailure):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What the box proves with who it is. Times are unix seconds; PEM texts as gRPC wants them."""

    id: NodeId
    serial: str
    not_before: float
    not_after: float
    key_pem: bytes
    chain_pem: bytes
    roots_pem: bytes
    endpoints: tuple[str, ...]

    def __repr__(self) -> str:
        return f"NodeIdentity({self.id}, serial={self.serial})"


def to_pem(certificates: Sequence[bytes]) -> bytes:
    """DER certificates as one PEM text."""
    blocks = []
    for der in certificates:
        text = base64.b64encode(der).decode()
        lines = [text[i : i + 64] for i in range(0, len(text), 64)]
        blocks.append("\n".join((_PEM_BEGIN, *lines, _PEM_END, "")))
    return "".join(blocks).encode()


def from_pem(text: bytes) -> list[bytes]:
    """The certificates of a PEM text, DER. Raises ValueError."""
    found = []
    for block in text.decode("ascii").split(_PEM_BEGIN)[1:]:
        body, end, _ = block.partition(_PEM_END)
        if not end:
            raise ValueError("a certificate is cut off")
        try:
            found.append(base64.b64decode("".join(body.split()), validate=True))
        except binascii.Error as error:
            raise ValueError("a certificate is damaged") from error
    return found


# --- the cryptography process -----------------------------------------------------------------


class Credentials(Protocol):
    """Carries out a command of `agent/credentials.py`."""

    async def __call__(
        self, name: str, header: dict[str, object], parts: Sequence[bytes] = (), *, timeout_s: float
    ) -> tuple[dict[str, object], list[bytes]]:
        """The answer and its raw frames. Raises CredentialsRefused and IdentityFailure."""
        ...


def _command(name: str) -> list[str]:
    """Isolated and without `site`, whose scan of .pth files would be a third of the whole run.

    The search path is handed over: without `site` the process has only the standard library.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *(p for p in sys.path if p and p != root and Path(p).is_dir())]
    yields = f"import os; os.nice({_NICE})\n" if name in _FOR_STRANGERS else ""
    code = (
        f"{yields}import sys; sys.path[:] = {paths!r}\n"
        f"from agent.credentials import main; sys.exit(main([{name!r}]))"
    )
    return [sys.executable, "-I", "-S", "-c", code]


async def run_credentials(
    name: str, header: dict[str, object], parts: Sequence[bytes] = (), *, timeout_s: float
) -> tuple[dict[str, object], list[bytes]]:
    """Run one command of `agent/credentials.py`. Raises CredentialsRefused and IdentityFailure."""
    frames = [json.dumps({**header, "parts": len(parts)}).encode(), *parts]
    payload = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    try:
        process = await asyncio.create_subprocess_exec(
            *_command(name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"LANG": "C.UTF-8"},
            close_fds=True,
        )
    except OSError as error:
        raise IdentityFailure(f"the cryptography process cannot be started: {error}") from error
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(payload)
    except TimeoutError:
        raise IdentityFailure(f"{name}: no answer within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = err.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise IdentityFailure(f"{name} failed ({process.returncode}): {said[0][:300]}")
    first, *rest = _frames(out)
    answer: dict[str, object] = json.loads(first)
    if "refused" in answer:
        raise CredentialsRefused(str(answer["refused"]), str(answer.get("message", "")))
    return answer, rest


def _frames(data: bytes) -> list[bytes]:
    frames, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        frames.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    if not frames:
        raise IdentityFailure("the cryptography process said nothing")
    return frames


class SubprocessPlanVerifier:
    """PlanVerifier of the agent: one process per plan, one at a time."""

    def __init__(self, store: "IdentityStore", *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()

    async def verify(self, signed: plan_pb2.SignedNodePlan, *, at: float) -> bytes:
        """See PlanVerifier."""
        payload = signed.node_plan
        async with self._turn:
            try:
                identity = self._store.load()
                roots = from_pem(identity.roots_pem)
                header: dict[str, object] = {
                    "at": at,
                    "trust_domain": identity.id.trust_domain,
                    "roots": len(roots),
                }
                parts = [payload, signed.signature, *roots, *signed.certificate_chain]
                await self._store.credentials(
                    "verify-plan", header, parts, timeout_s=self._timeout_s
                )
            except CredentialsRefused as error:
                raise PlanRejected(error.reason, str(error)) from error
            except (IdentityFailure, ValueError) as error:
                raise PlanRejected("VerifierFailed", str(error)) from error
        return payload


# --- the store --------------------------------------------------------------------------------


class StagedIdentity:
    """A key that waits for its certificate. Use `commit`, or `discard`."""

    def __init__(self, store: "IdentityStore", directory: Path, csr: bytes) -> None:
        self._store = store
        self._directory = directory
        self.csr = csr

    async def commit(
        self,
        chain: Sequence[bytes],
        roots: Sequence[bytes],
        endpoints: Sequence[str],
        *,
        expected: NodeId | None = None,
    ) -> NodeIdentity:
        """Make the certificate (DER, leaf first) and this key the node's identity, durably.

        Raises IdentityFailure and changes nothing when the certificate does not fit the key, names
        no node, or another one than `expected`.
        """
        if not chain or not roots or not endpoints:
            raise IdentityFailure("the orchestrator's answer is incomplete; nothing was changed")
        header: dict[str, object] = {"key_path": str(self._directory / "key.pem")}
        facts, _ = await self._store.credentials(
            "inspect", header, chain[:1], timeout_s=CALL_TIMEOUT_S
        )
        try:
            named = parse(str(facts["identity"]))
        except InvalidIdentity as error:
            raise IdentityFailure(str(error)) from error
        if not isinstance(named, NodeId) or (expected is not None and named != expected):
            raise IdentityFailure(f"the certificate names {named}, not {expected or 'a node'}")
        texts = {
            "chain.pem": to_pem(chain),
            "roots.pem": to_pem(roots),
            "endpoints.json": json.dumps(list(endpoints[:MAX_ENDPOINTS])).encode(),
            "node.json": json.dumps(facts).encode(),
        }
        return self._store._switch(self._directory, texts)

    def discard(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class IdentityStore:
    """The identity below one state directory. Only the holder of the agent's lock writes.

    `credentials` does what needs cryptography: on a box, in a process of its own.
    """

    def __init__(self, state_dir: Path, credentials: Credentials = run_credentials) -> None:
        self.credentials = credentials
        self._link = state_dir / "identity"
        self._versions = state_dir / "identities"
        self._cached: NodeIdentity | None = None

    def load(self) -> NodeIdentity:
        """The identity in use. Raises NotJoined, and IdentityFailure when it is damaged."""
        if self._cached is None:
            self._cached = self._read()
        return self._cached

    async def stage(self) -> StagedIdentity:
        """Make a key and its request next to the identity in use. Raises IdentityFailure."""
        try:
            self._versions.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._versions.chmod(0o700)
            directory = self._next_directory()
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise IdentityFailure(f"{self._versions}: {error.strerror}") from error
        header: dict[str, object] = {"path": str(directory / "key.pem")}
        try:
            _, (csr,) = await self.credentials("new-key", header, timeout_s=CALL_TIMEOUT_S)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return StagedIdentity(self, directory, csr)

    def update_endpoints(self, endpoints: Sequence[str]) -> None:
        """Remember where orchestrators are, if there are any. Raises IdentityFailure."""
        wanted = tuple(endpoints[:MAX_ENDPOINTS])
        current = self.load()
        if not wanted or wanted == current.endpoints:
            return
        directory = self._link.resolve()
        try:
            write_synced(directory / "endpoints.json.new", json.dumps(list(wanted)).encode())
            (directory / "endpoints.json.new").rename(directory / "endpoints.json")
            sync_directory(directory)
        except OSError as error:
            raise IdentityFailure(f"{directory}: {error.strerror}") from error
        self._cached = None

    def _read(self) -> NodeIdentity:
        if not self._link.is_symlink():
            raise NotJoined("this box has not joined an installation: run `edge-agent join`")
        try:
            raw = {name: (self._link / name).read_bytes() for name in _NODE_FILES}
            facts = json.loads(raw["node.json"])
            endpoints = tuple(str(e) for e in json.loads(raw["endpoints.json"]))
            if not endpoints:
                raise ValueError("no endpoints")
            identity = parse(facts["identity"])
            if not isinstance(identity, NodeId):
                raise ValueError(f"{identity} is no node")
            return NodeIdentity(
                id=identity,
                serial=str(facts["serial"]),
                not_before=float(facts["not_before"]),
                not_after=float(facts["not_after"]),
                key_pem=raw["key.pem"],
                chain_pem=raw["chain.pem"],
                roots_pem=raw["roots.pem"],
                endpoints=endpoints,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IdentityFailure(
                f"the identity in {self._link} is damaged ({error}); "
                "join again with a new token and --force"
            ) from error

    def _next_directory(self) -> Path:
        numbers = [int(p.name) for p in self._versions.iterdir() if p.name.isdigit()]
        return self._versions / f"{max(numbers, default=0) + 1:06d}"

    def _switch(self, directory: Path, texts: dict[str, bytes]) -> NodeIdentity:
        try:
            for name, text in texts.items():
                write_synced(directory / name, text)
            sync_directory(directory)
            sync_directory(self._versions)
            fresh = self._link.with_name("identity.new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(Path(self._versions.name) / directory.name)
            fresh.rename(self._link)
            sync_directory(self._link.parent)
        except OSError as error:
            raise IdentityFailure(
                f"{directory}: {error.strerror}; the old identity stays"
            ) from error
        self._cached = None
        identity = self.load()
        for other in self._versions.iterdir():  # keys that nobody needs any more
            if other.name != directory.name:
                shutil.rmtree(other, ignore_errors=True)
        return identity
