"""Images of the replicas that this node may take over, fetched ahead of time.

`agent/site/loop.py` makes one, says after every plan what is wanted, and hears when an image came
or could not be had: a takeover must not wait for a registry, which may be away just then. One image
at a time, so that what is only to be ready does not slow down what runs.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

from agent.domain.backoff import IMAGE, Retry
from agent.domain.compose import registry_auth
from agent.domain.given import Given, Unresolved
from agent.domain.plan import Role
from agent.runtime.port import ImageFailure, PullPolicy, RegistryAuth, Runtime, RuntimeFailure

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 600.0
"""An image that was there may have been removed by hand."""
AWAY = "it was not looked for yet"


@dataclass(slots=True)
class _Image:
    policy: PullPolicy
    auth: RegistryAuth | None
    trouble: str = AWAY
    retry: Retry = field(default_factory=lambda: Retry(IMAGE))
    pulled: bool = False


class Prefetch:
    """`arch` as in OCI images. `on_change`: `trouble` answers otherwise than before."""

    def __init__(self, runtime: Runtime, arch: str) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._runtime = runtime
        self._arch = arch
        self._images: dict[str, _Image] = {}
        self._wake = asyncio.Event()

    def use(self, roles: Iterable[Role], given: Given) -> None:
        """These and no others are wanted. What failed for want of a secret is tried anew."""
        wanted: dict[str, _Image] = {}
        for role in roles:
            template = role.assignment.template
            if template is None:
                continue
            for container in (*template.init_containers, *template.containers):
                try:
                    auth = registry_auth(
                        container.image, role.assignment.namespace, template, given
                    )
                except Unresolved:
                    auth = None  # said by abilities.py; the image may be here all the same
                policy = PullPolicy(container.image_pull_policy)
                wanted[container.image] = _Image(policy, auth)
        for name, image in wanted.items():
            known = self._images.get(name)
            if known is not None:
                image.trouble, image.retry = known.trouble, known.retry
                image.pulled = known.pulled
                if known.auth != image.auth:
                    image.retry.hurry(monotonic())
        self._images = wanted
        self._wake.set()

    def trouble(self, image: str) -> str:
        """Why it is not here; empty when it is."""
        known = self._images.get(image)
        return AWAY if known is None else known.trouble

    async def run(self) -> None:
        """Until cancelled. Failures are tried again, with growing pauses."""
        while True:
            self._wake.clear()
            for name in list(self._images):
                image = self._images.get(name)
                if image is not None and not image.retry.waits(monotonic()):
                    await self._ensure(name, image)
            due = min((image.retry.until for image in self._images.values()), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _ensure(self, name: str, image: _Image) -> None:
        was = image.trouble
        try:
            await self._pull(name, image)
        except RuntimeFailure as failure:
            image.trouble = f"{failure.reason}: {failure.message}"
            image.retry.failed(monotonic(), failure.reason, failure.message)
            log.info("standby image", extra={"image": name, "error": failure.message})
        else:
            image.trouble = ""
            image.retry.succeeded()
            image.retry.until = monotonic() + LOOK_AGAIN_S
        if image.trouble != was and self._images.get(name) is image:
            self.on_change()

    async def _pull(self, name: str, image: _Image) -> None:
        """`Always` is tried once; what is here is enough when that fails. Raises RuntimeFailure."""
        if image.policy is PullPolicy.ALWAYS and not image.pulled:
            try:
                await self._runtime.ensure_image(name, image.policy, image.auth, self._arch)
                image.pulled = True
                return
            except ImageFailure as failure:
                log.debug("not pulled anew", extra={"image": name, "error": failure.message})
        never = image.policy is PullPolicy.NEVER
        policy = PullPolicy.NEVER if never else PullPolicy.IF_NOT_PRESENT
        await self._runtime.ensure_image(name, policy, image.auth, self._arch)
