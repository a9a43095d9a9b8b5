"""TCP proxies between every two parts, driven from another thread's event loop."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self

from tests.integration.etcd_proxy import Proxy

_WAIT_S = 10.0


class Wire:
    """What lies between two parts. Each fault lasts until `restore`."""

    def __init__(self, wires: "Wires", name: str, proxy: Proxy) -> None:
        self.name = name
        self._wires = wires
        self._proxy = proxy
        self._faulty = False

    @property
    def endpoint(self) -> str:
        return self._proxy.endpoint

    def cut(self) -> None:
        """Connections are reset, new ones refused."""
        self._faulty = True
        self._wires.run(self._proxy.cut())

    def mute(self) -> None:
        """What is sent arrives; no answer comes back."""
        self._faulty = True
        self._wires.call(self._proxy.mute)

    def restore(self) -> None:
        """Does nothing to a wire that is whole."""
        if self._faulty:
            self._faulty = False
            self._wires.run(self._proxy.restore())


class Wires:
    """Use as a context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._proxies: list[Proxy] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            self.run(proxy.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)

    def lay(self, name: str, port: int) -> Wire:
        """To a port of this machine."""
        proxy = Proxy(port)
        self.run(proxy.__aenter__())
        self._proxies.append(proxy)
        return Wire(self, name, proxy)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_S)

    def call(self, function: Any) -> None:
        async def called() -> None:
            function()

        self.run(called())
