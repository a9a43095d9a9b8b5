"""What images are made of and what is said of them; with `long`, built for both architectures."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from images.build import IMAGES, build
from images.inputs import ARCHITECTURES, HERE, ROOT, CannotBuild, sources
from images.layout import DamagedLayout, Layout
from images.sbom import sbom, sbom_text
from tests.charts.conftest import SOURCE, Built

DOCKERFILES = sorted(HERE.glob("*/Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_names_no_image_and_fetches_nothing(path: Path) -> None:
    lines = path.read_text().replace("\\\n", "").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    bases = [line[-3] if "AS" in line else line[-1] for line in words if line[0] == "FROM"]
    assert bases == ["${BUILDER}", "scratch"], "the builder is given, and has no default"
    assert ["ARG", "BUILDER"] in words
    assert not [line for line in words if line[0] == "ADD"]
    final = words[max(n for n, line in enumerate(words) if line[0] == "FROM") :]
    assert not [line for line in final if line[0] == "RUN"], "nothing of the target is run"
    assert ["USER", "65532:65532"] in final
    assert [line for line in final if line[0] == "ENTRYPOINT"]
    labels = " ".join(word for line in final if line[0] == "LABEL" for word in line)
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_wheels_are_locked_by_hash() -> None:
    """All that the orchestrator needs, each once, with the wheels of two architectures at most."""
    text = (HERE / "orchestrator/requirements.txt").read_text()
    locked = re.findall(
        r"^([a-z0-9-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M
    )
    names = [name for name, _, _ in locked]
    assert len(names) == len(set(names)) == text.count("==")
    assert all(1 <= hashes.count("sha256") <= 2 for _, _, hashes in locked)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["orchestrator"]
    for requirement in wanted:
        name, floor = re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()  # type: ignore[union-attr]
        version = next(v for n, v, _ in locked if n == name.lower())
        as_numbers = [tuple(map(int, text.split("."))) for text in (version, floor)]
        assert as_numbers[0] >= as_numbers[1], requirement


# --- reading a layout -----------------------------------------------------------------------------


def layout_of(folder: Path, files: dict[str, bytes]) -> Layout:
    """A small one, of one image."""

    def blob(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = folder / "blobs/sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    layer = blob(raw.getvalue())
    config = blob(json.dumps({"architecture": "arm64", "os": "linux"}).encode())
    image = blob(json.dumps({"config": config, "layers": [layer]}).encode())
    index = blob(json.dumps({"manifests": [image]}).encode())
    (folder / "index.json").write_text(json.dumps({"manifests": [index]}))
    return Layout(folder)


RECORD = (
    b"Package: libc6\nVersion: 2.36-9+deb12u9\nArchitecture: arm64\nMaintainer: Glibc <g@d.o>\n"
)
METADATA = (
    b"Metadata-Version: 2.4\nName: Prometheus_Client\nVersion: 0.2\nLicense-Expression: MIT\n\nx"
)


def test_a_bill_of_materials_names_what_is_in_the_image(tmp_path: Path) -> None:
    layout = layout_of(
        tmp_path,
        {
            "var/lib/dpkg/status.d/libc6": RECORD,
            "usr/lib/python3/dist-packages/prometheus_client-0.2.dist-info/METADATA": METADATA,
            "usr/bin/x": b"",
        },
    )
    image = layout.images()["arm64"]
    document = sbom(image, "polder-x", "0.1.0", 1_790_000_000.0)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert [c["purl"] for c in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=arm64&distro=debian-12",
        "pkg:pypi/prometheus-client@0.2",
    ]
    assert document["components"][1]["licenses"] == [{"expression": "MIT"}]
    assert document["metadata"]["component"]["hashes"][0]["content"] in image.digest
    again = sbom(layout.images()["arm64"], "polder-x", "0.1.0", 1_790_000_000.0)
    assert sbom_text(again) == sbom_text(document)
    references = {c["bom-ref"] for c in document["components"]}
    assert set(document["dependencies"][0]["dependsOn"]) == references


def test_a_damaged_layout_is_told(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, {"x": b"1"})
    layer = layout.images()["arm64"].manifest["layers"][0]["digest"]
    layout.path(layer).write_bytes(b"other")
    with pytest.raises(DamagedLayout, match="is another file than its name says"):
        layout.images()
    layout.path(layer).unlink()
    with pytest.raises(DamagedLayout, match="is missing"):
        layout.images()


# --- really built ---------------------------------------------------------------------------------


def marked(function: Any) -> Any:
    """Of a test that builds images."""
    for mark in (pytest.mark.images, pytest.mark.machine, pytest.mark.long):
        function = mark(function)
    return pytest.mark.timeout(900)(function)


@marked
def test_images_of_both_architectures_are_built(built: Built) -> None:
    for name in IMAGES:
        layout = Layout(built.out / name)
        assert set(layout.images()) == set(ARCHITECTURES)
        assert (built.out / f"{name}.digest").read_text().strip() == layout.digest


@marked
def test_an_image_has_no_more_than_it_needs(built: Built) -> None:
    for name, image in built.images():
        config = image.config["config"]
        assert config["User"] == "65532:65532", name
        assert config["Labels"]["org.opencontainers.image.version"] == "0.1.0"
        assert not any("PASSWORD" in word or "TOKEN" in word for word in config["Env"])
        names = {entry.name for entry in image.entries()}
        for forbidden in ("bin/sh", "usr/bin/sh", "usr/bin/bash", "usr/bin/apt", "usr/bin/dpkg"):
            assert forbidden not in names, f"{name}: {forbidden}"
        for entry in image.entries():
            assert not entry.mode & 0o6000, f"{name}: {entry.name} gives rights"
            assert not (entry.isfile() and entry.mode & 0o002), f"{name}: {entry.name}"
            assert not entry.name.endswith((".key", "admin.yaml")), f"{name}: {entry.name}"
            assert (entry.uid, entry.gid) == (0, 0), f"{name}: {entry.name}"


@marked
def test_programs_are_of_the_images_architecture(built: Built) -> None:
    machines = {"amd64": 0x3E, "arm64": 0xB7}  # ELF's e_machine
    for name, image in built.images():
        for path, data in image.files().items():
            if data[:4] == b"\x7fELF":
                machine = int.from_bytes(data[18:20], "little")
                assert machine == machines[image.architecture], f"{name}: {path}"


@marked
def test_every_package_is_in_the_bill_of_materials(built: Built) -> None:
    for name, image in built.images():
        path = built.out / f"{name}-{image.architecture}.cdx.json"
        document = json.loads(path.read_text())
        records = {prop["value"] for c in document["components"] for prop in c["properties"]}
        files = image.files()
        inside = {p for p in files if p.startswith("var/lib/dpkg/status.d/")}
        inside |= {p for p in files if p.endswith(".dist-info/METADATA")}
        assert records == inside
        home = IMAGES[name]
        debs = set((HERE / home / "packages.txt").read_text().split())
        assert debs <= {c["name"] for c in document["components"]}


@marked
def test_the_same_inputs_give_the_same_digest(built: Built, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(built.work / "context", work / "context")
    (work / "builder.tar").symlink_to(built.work / "builder.tar")
    build(["polder-orchestrator"], ARCHITECTURES, tmp_path / "out", SOURCE, work)
    before, after = (
        (folder / "polder-orchestrator.digest").read_text()
        for folder in (built.out, tmp_path / "out")
    )
    assert before == after


@marked
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_orchestrator_starts_in_its_image(
    built: Built, tmp_path: Path, architecture: str
) -> None:
    """The first start: keys, certificates, SQLite, gRPC. arm64 under emulation."""
    root = tmp_path / "root"  # pytest's own folder is for its user alone
    Layout(built.out / "polder-orchestrator").images()[architecture].unpack(root)
    shutil.chown(root / "var/lib/polder", 65532)
    command = ["/usr/bin/python3.11", "-sP", "/usr/bin/edge-orchestrator", "serve", "--init"]
    if architecture == "arm64":
        emulator = shutil.which("qemu-aarch64-static")
        if emulator is None:
            pytest.skip("needs qemu-aarch64-static (apt-get install qemu-user-static)")
        shutil.copy(emulator, root / "emulator")
        command = ["/emulator", *command]
    done = subprocess.run(
        ["chroot", "--userspec=65532:65532", str(root), *command],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (root / "var/lib/polder/admin.yaml").exists()


def test_packages_come_from_where_this_machine_has_them() -> None:
    said = (
        "http://mirror.example/debian/ bookworm main\n"
        "http://mirror.example/debian/ bookworm contrib\n"
        "http://mirror.example/security/ bookworm-security main\n"
        "http://other.example/ stable main\n"
    )
    places = [line.split("] ")[1] for line in sources(said)]
    assert places == [
        "http://mirror.example/debian/ bookworm main",
        "http://mirror.example/security/ bookworm-security main",
    ]


def test_a_machine_without_the_releases_security_updates_builds_nothing() -> None:
    with pytest.raises(CannotBuild, match="bookworm-security"):
        sources("http://mirror.example/debian/ bookworm main\n")
