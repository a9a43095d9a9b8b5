"""`edge-orchestrator` for this harness; on demand with a defect that the checker must find.

Run as `python -m tests.faults.member DEFECT ARGUMENT...`; `-` for none. Defects exist here alone:

unasked   answers reads from its mirror without asking the Store whether that is current
unmarked  repeats a write whose outcome is unknown as if it were new, and believes no marks
"""

import sys
from typing import Any


def unasked() -> None:
    from orchestrator.freshness import Freshness

    async def to_read(self: Freshness) -> float:
        return 0.0

    Freshness.to_read = Freshness.to_write = to_read  # type: ignore[method-assign]


def unmarked() -> None:
    from orchestrator.settling import SettlingStore

    async def step(
        self: Any, name: str, compares: Any, ops: Any, outcome: bytes = b""
    ) -> tuple[Any, None]:
        return await self._inner.txn(compares, ops), None

    SettlingStore.step = step  # type: ignore[assignment,method-assign]
    SettlingStore.is_repeated = False  # type: ignore[assignment,method-assign]


DEFECTS = {"unasked": unasked, "unmarked": unmarked}


def main() -> int:
    from orchestrator.main import main as run

    defect, *arguments = sys.argv[1:]
    if defect != "-":
        DEFECTS[defect]()
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
