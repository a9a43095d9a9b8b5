"""What is in an image, as CycloneDX 1.5: read from the image itself, so that it cannot say less.

Used by `build.py`, which writes it beside the image. Debian's packages are known by the records
that `assemble.py` leaves, Python's by their dist-info. https://cyclonedx.org/docs/1.5/json/
"""

import json
import uuid
from datetime import UTC, datetime
from email.parser import HeaderParser
from typing import Any
from urllib.parse import quote

from images.layout import Image

_RECORDS = "var/lib/dpkg/status.d/"
_METADATA = ".dist-info/METADATA"
_LICENSE_MAX = 100
Component = dict[str, Any]


def sbom(image: Image, name: str, version: str, when: float) -> dict[str, Any]:
    """The document. The same image gives the same one."""
    components = sorted((*debian(image), *python(image)), key=lambda c: str(c["bom-ref"]))
    digest = image.digest.partition(":")[2]
    purl = f"pkg:oci/{name}@{quote(image.digest, safe='')}?arch={image.architecture}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, purl)}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "container",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            },
        },
        "components": components,
        "dependencies": [{"ref": purl, "dependsOn": [str(c["bom-ref"]) for c in components]}],
    }


def _library(name: str, version: str, purl: str, record: str) -> Component:
    """What every package says of itself; `record` is the file in the image that says so."""
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "properties": [{"name": "polder:record", "value": record}],
    }


def debian(image: Image) -> list[Component]:
    found = []
    for path, data in image.files().items():
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


def python(image: Image) -> list[Component]:
    found = []
    for path, data in image.files(_METADATA).items():
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
