"""What is in an image or a package, as CycloneDX 1.5: read from the thing itself, so it says all.

Used by `build.py` for images and by `releasing` for the agent's packages; it is written beside the
thing. Debian's packages are known by the records that `assemble.py` leaves, Python's by their
dist-info. https://cyclonedx.org/docs/1.5/json/
"""

import hashlib
import io
import json
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

from images.layout import Image

_RECORDS = "var/lib/dpkg/status.d/"
_METADATA = ".dist-info/METADATA"
_LICENSE_MAX = 100
Component = dict[str, Any]
Files = Mapping[str, bytes]


def sbom(image: Image, name: str, version: str, when: float) -> dict[str, Any]:
    """The document of an image. The same image gives the same one."""
    purl = f"pkg:oci/{name}@{quote(image.digest, safe='')}?arch={image.architecture}"
    subject = {
        "type": "container",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": image.digest.partition(":")[2]}],
    }
    files = image.files()
    return _document(subject, [*debian(files), *python(files)], when)


def package_sbom(package: Path, when: float) -> dict[str, Any]:
    """The document of a Debian package, with the Python packages that it brings."""
    command = ["dpkg-deb", "--field", str(package)]
    control = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    fields = HeaderParser().parsestr(control)
    name, version, arch = (str(fields[key]) for key in ("Package", "Version", "Architecture"))
    purl = f"pkg:deb/polder/{name}@{quote(version, safe='')}?arch={arch}"
    subject = {
        "type": "application",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(package.read_bytes()).hexdigest()}],
    }
    return _document(subject, python(_metadata_in(package)), when)


def _metadata_in(package: Path) -> dict[str, bytes]:
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    tree = subprocess.run(command, capture_output=True, check=True).stdout
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tree)) as tar:
        for entry in tar:
            if entry.isfile() and entry.name.endswith(_METADATA):
                data = tar.extractfile(entry)
                assert data is not None
                found[entry.name.removeprefix("./")] = data.read()
    return found


def _document(subject: Component, contents: Sequence[Component], when: float) -> dict[str, Any]:
    components = sorted(contents, key=lambda c: str(c["bom-ref"]))
    purl = str(subject["purl"])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, _identity(subject))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": subject,
        },
        "components": components,
        "dependencies": [{"ref": purl, "dependsOn": [str(c["bom-ref"]) for c in components]}],
    }


def _identity(subject: Component) -> str:
    """Of this very thing: another build of the same version is another."""
    return f"{subject['purl']}#{subject['hashes'][0]['content']}"


def _library(name: str, version: str, purl: str, record: str) -> Component:
    """What every package says of itself; `record` is the file that says so."""
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": [{"name": "polder:record", "value": record}],
    }


def debian(files: Files) -> list[Component]:
    found = []
    for path, data in files.items():
        if not path.startswith(_RECORDS):
            continue
        fields = HeaderParser().parsestr(data.decode())
        name, version, arch = (str(fields[key]) for key in ("Package", "Version", "Architecture"))
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={arch}&distro=debian-12"
        component = _library(name, version, purl, path)
        component["publisher"] = str(fields["Maintainer"])
        if fields["Homepage"]:
            link = {"type": "website", "url": str(fields["Homepage"])}
            component["externalReferences"] = [link]
        found.append(component)
    return found


def python(files: Files) -> list[Component]:
    found = []
    for path, data in files.items():
        if not path.endswith(_METADATA):
            continue
        fields = HeaderParser().parsestr(data.decode())
        name, version = str(fields["Name"]).lower().replace("_", "-"), str(fields["Version"])
        purl = f"pkg:pypi/{name}@{quote(version, safe='')}"
        component = _library(name, version, purl, path)
        if text := fields["License-Expression"]:
            component["licenses"] = [{"expression": str(text)}]
        elif text := fields["License"]:
            first = str(text).partition("\n")[0][:_LICENSE_MAX]
            component["licenses"] = [{"license": {"name": first}}]
        found.append(component)
    return found


def sbom_text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"
