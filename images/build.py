"""Builds the images as OCI layouts, with buildah: no daemon, no registry. Used by `__main__.py`.

    OUT/NAME/            an OCI image layout: an index of one image for each architecture
    OUT/NAME.digest      of that index: what `image.digest` of the Helm chart takes
    OUT/NAME-ARCH.cdx.json   its bill of materials

The same checkout and the same inputs give the same digests.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from images import inputs
from images.inputs import HERE, run
from images.layout import Layout
from images.sbom import sbom, sbom_text

IMAGES = {"polder-orchestrator": "orchestrator", "polder-etcd": "etcd"}


@dataclass(frozen=True)
class Source:
    """What is built: Polder's version, the commit, and the date of everything in an image (unix
    seconds)."""

    version: str
    revision: str
    when: str


@dataclass(frozen=True)
class Builder:
    """buildah with a storage of its own, which is removed afterwards. `work`: what was fetched."""

    storage: Path
    work: Path
    source: Source

    def buildah(self, *arguments: str, offline: bool = False) -> str:
        """`offline`: in a network namespace without anything, which buildah's chroot cannot do."""
        apart = ["unshare", "--net"] if offline else []
        where = [f"--root={self.storage / 'images'}", f"--runroot={self.storage / 'run'}"]
        return run([*apart, "buildah", *where, "--storage-driver=overlay", *arguments])

    def import_builder(self) -> str:
        """The stage in which images are assembled, as a local image."""
        tar = self.work / "builder.tar"
        if not tar.exists():
            inputs.make_builder(tar, self.source.when)
        container = self.buildah("from", "scratch").strip()
        self.buildah("add", "--quiet", container, str(tar), "/")
        name = "localhost/polder-builder"
        self.buildah(
            "commit", "--quiet", "--rm", f"--timestamp={self.source.when}", container, name
        )
        return name

    def image(self, folder: str, context: Path, architecture: str, builder: str) -> str:
        name = f"localhost/{folder}-{architecture}"
        self.buildah(
            "build", "--quiet", "--isolation=chroot", "--layers=false",
            "--pull-never", f"--timestamp={self.source.when}", f"--platform=linux/{architecture}",
            f"--build-arg=BUILDPLATFORM=linux/{inputs.own_architecture()}",
            f"--build-arg=BUILDER={builder}", f"--build-arg=VERSION={self.source.version}",
            f"--build-arg=REVISION={self.source.revision}",
            f"--file={HERE / folder / 'Dockerfile'}", f"--tag={name}", str(context), offline=True,
        )  # fmt: skip
        return name

    def layout(self, names: Sequence[str], into: Path) -> Layout:
        listed = f"localhost/list-{into.name}"
        self.buildah("manifest", "create", listed)
        for name in names:
            self.buildah("manifest", "add", listed, f"containers-storage:{name}")
        shutil.rmtree(into, ignore_errors=True)
        self.buildah("manifest", "push", "--all", "--format=oci", listed, f"oci:{into}")
        return Layout(into)


def build(
    names: Sequence[str], architectures: Sequence[str], out: Path, source: Source, work: Path | None
) -> list[Path]:
    """The files and folders that were made. `work` is kept, with what was fetched, when it is
    given. Raises CannotBuild."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        storage = Path(temporary)
        folder = work or storage / "work"
        folder.mkdir(parents=True, exist_ok=True)
        builder = Builder(storage, folder, source)
        base = builder.import_builder()
        made = []
        for name in names:
            home = IMAGES[name]
            context = folder / "context" / home
            inputs.context(home, context, folder, architectures, source.when)
            built = [builder.image(home, context, arch, base) for arch in architectures]
            made += _finish(builder.layout(built, out / name), name, source)
        return made


def _finish(layout: Layout, name: str, source: Source) -> list[Path]:
    out = layout.folder.parent
    digest = out / f"{name}.digest"
    digest.write_text(layout.digest + "\n")
    made = [layout.folder, digest]
    for architecture, image in layout.images().items():
        path = out / f"{name}-{architecture}.cdx.json"
        path.write_text(sbom_text(sbom(image, name, source.version, float(source.when))))
        made.append(path)
    return made
