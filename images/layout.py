"""Reads an OCI image layout: which images are in it, and what is in their layers.

Used by `sbom.py`, and by tests that check what was built without running it. The source of the
format: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_INDEX = "application/vnd.oci.image.index.v1+json"


class DamagedLayout(Exception):
    """A blob is missing, or is not what its digest says."""


@dataclass(frozen=True)
class Image:
    """One of one architecture."""

    layout: "Layout"
    digest: str
    manifest: dict[str, Any]

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.layout.blob(self.manifest["config"]["digest"]))
        return found

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    def entries(self) -> Iterator[tarfile.TarInfo]:
        """Everything in the layers, in order; the path without a leading `./` or `/`."""
        for layer in self.manifest["layers"]:
            with tarfile.open(self.layout.path(layer["digest"])) as tar:
                for entry in tar:
                    entry.name = entry.name.lstrip("./")
                    yield entry

    def files(self) -> dict[str, bytes]:
        """Regular files, with what is in them."""
        found = {}
        for layer in self.manifest["layers"]:
            with tarfile.open(self.layout.path(layer["digest"])) as tar:
                for entry in tar:
                    if entry.isfile():
                        data = tar.extractfile(entry)
                        assert data is not None
                        found[entry.name.lstrip("./")] = data.read()
        return found

    def unpack(self, folder: Path) -> None:
        """As a container's root. Ours have no whiteouts: each layer only adds."""
        for layer in self.manifest["layers"]:
            with tarfile.open(self.layout.path(layer["digest"])) as tar:
                tar.extractall(folder, filter="tar")


@dataclass(frozen=True)
class Layout:
    folder: Path

    def path(self, digest: str) -> Path:
        kind, _, value = digest.partition(":")
        return self.folder / "blobs" / kind / value

    def blob(self, digest: str) -> bytes:
        """Raises DamagedLayout."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise DamagedLayout(f"{digest} is missing") from error
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise DamagedLayout(f"{digest} is another file than its name says")
        return data

    @property
    def digest(self) -> str:
        """Of the one thing that the layout names: an index of images, or an image."""
        (entry,) = json.loads((self.folder / "index.json").read_text())["manifests"]
        return str(entry["digest"])

    def images(self) -> dict[str, Image]:
        """By architecture. Raises DamagedLayout."""
        top = json.loads(self.blob(self.digest))
        entries = top["manifests"] if top.get("mediaType") == _INDEX or "manifests" in top else []
        digests = [entry["digest"] for entry in entries] or [self.digest]
        found = [Image(self, digest, json.loads(self.blob(digest))) for digest in digests]
        for image in found:
            for layer in image.manifest["layers"]:
                self.blob(layer["digest"])
        return {image.architecture: image for image in found}
