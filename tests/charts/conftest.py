"""The images, built once for all tests that look at them or run them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.build import IMAGES, Source, build
from images.inputs import ARCHITECTURES
from images.layout import Image, Layout

SOURCE = Source("0.1.0", "0" * 40, "1790000000")


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
    build(list(IMAGES), ARCHITECTURES, found.out, SOURCE, found.work)
    return found
