"""An upgrade of a board: its systemd, dpkg, installer and agent are of arm64, emulated.

Nothing of it is a double: systemd boots under qemu-user. What qemu does not know is left out by
systemd itself, above all seccomp (`SystemCallFilter=` and the like).
"""

import asyncio
from pathlib import Path

import pytest

from devcluster.emulation import arm64_programs, debian
from tests.debian_root import DebianRoot
from tests.integration.orchestrator_rig import running
from tests.integration.test_package_boots import token_for
from tests.integration.test_package_upgrade import (
    WORSE,
    Hands,
    comes_through,
    goes_back,
    joined,
    versions,
)

pytestmark = [pytest.mark.long, pytest.mark.emulation, pytest.mark.timeout(3600)]

PATIENCE = "10m"


async def test_a_board_comes_through_and_goes_back_by_itself(tmp_path: Path) -> None:
    packages = await asyncio.to_thread(versions, "arm64", tmp_path)
    with arm64_programs(), DebianRoot(str(debian("arm64", tmp_path))) as root:
        async with running(tmp_path / "orchestrator") as rig:
            await rig.site()
            token = await token_for(rig, "box-1")
            hands = Hands(rig, packages, PATIENCE)
            await asyncio.to_thread(_two_upgrades, root, hands, token)


def _two_upgrades(root: DebianRoot, hands: Hands, token: str) -> None:
    joined(root, hands.packages, token)
    comes_through(root, hands)
    goes_back(root, hands, WORSE, "InstallFailed")
