"""The images, built once for all tests that look at them or run them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.build import IMAGES, build
from images.inputs import ARCHITECTURES
from images.layout import Image, Layout


@dataclass
class Built:
    out: Path
    work: Path

    def images(self) -> Iterator[tuple[str, Image]]:
        for name in IMAGES:
            for image in Layout(self.out / name).images().values():
                yield name, image


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("images")
    found = Built(folder / "out", folder / "work")
    build(list(IMAGES), ARCHITECTURES, found.out, "0.1.0", found.work)
    return found
