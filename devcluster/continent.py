"""Three regions and two sites on one machine: real programs, and lines between that can be cut.

Each region has a network namespace with an etcd and an orchestrator; each box has one with an agent
and a containerd. tests/e2e and examples/regions use it; it needs root. `start` and `stop` may be
called in any state, by another process than the one that called first, and after a crash:
everything on the machine carries a name that follows from the directory.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from devcluster import etcd
from devcluster.backbone import HOST, Backbone
from devcluster.boxes import Boxes, run
from devcluster.client import SITE_MANIFESTS
from devcluster.containerd import RUN_DIRECTORY
from devcluster.etcd import EtcdMember
from devcluster.etcd_api import EtcdRefused
from devcluster.image import ImageSpec, hello_image
from devcluster.region import EDGE_ORCHESTRATOR, Member, Region, RegionPlace
from orchestrator.store.etcd.settings import EtcdTls

REGIONS = (
    RegionPlace("eu-central", "50.11,8.68"),
    RegionPlace("eu-west", "48.86,2.35"),
    RegionPlace("eu-north", "59.33,18.06"),
)
BOXES = {"box-1": "nl-utr-1", "box-2": "de-fra-1"}
"""Box -> its site."""

SITES: tuple[dict[str, Any], ...] = (
    *SITE_MANIFESTS,
    {
        "apiVersion": "polder.eu/v1",
        "kind": "Site",
        "metadata": {"name": "de-fra-1"},
        "spec": {
            "provider": "example-telco",
            "country": "DE",
            "region": "eu-central",
            "coordinates": {"latitude": 50.11, "longitude": 8.68},
        },
    },
)
PREFIX = "/polder"
CLIENT = "orchestrators"


class Continent(Boxes):
    """`settings`: more flags of every orchestrator, without dashes: {"lost-after": "10s"}.

    owner: the process that it must not outlive; 0: it lives until `stop`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        regions: Sequence[RegionPlace] = REGIONS,
        boxes: Mapping[str, str] = BOXES,
        settings: Mapping[str, str] | None = None,
        members: int = 1,
        owner: int = 0,
    ) -> None:
        directory = directory.resolve()
        super().__init__(directory, directory / "admin.yaml")
        self.name = "pd" + hashlib.sha256(str(directory).encode()).hexdigest()[:8]
        self.boxes = dict(boxes)
        places = [*(region.name for region in regions), *boxes]
        self.network = Backbone(self.name, directory / "network.json", places)
        self._places = tuple(regions)
        self._settings = dict(settings or {})
        self._members_each = members
        self._owner = owner
        self.regions: dict[str, Region] = {}
        if self.network.subnet:
            self._know()

    # --- up --------------------------------------------------------------------------------------

    def start(
        self, *, images: Sequence[ImageSpec] = (), told: Callable[[str], None] = lambda _: None
    ) -> None:
        """Returns when all regions serve and all boxes are Ready. Raises what its parts raise."""
        self._register()
        told("network and certificates")
        self.network.start()
        self._make_authorities()
        self._know()
        told("etcd")
        self.start_etcd()
        told("orchestrators")
        self.start_members()
        self._write_context()
        text = "\n---\n".join(json.dumps(manifest) for manifest in SITES)
        self.edgectl("apply", "-f", "-", stdin=text)
        told("boxes")
        wanted = tuple(images) or (hello_image(),)
        _together(
            lambda name: self.add_agent(
                name, site=self.boxes[name], images=wanted, netns=self.network.netns(name)
            ),
            list(self.boxes),
        )

    def _make_authorities(self) -> None:
        """One root; each region is given its own CA, and the root's key stays where it is."""
        first, *others = [place.name for place in self._places]
        if not self._tls(CLIENT).certificate.exists():
            self._ca("etcd", "--name", CLIENT, "--client")
        self._make_authority(first)
        _together(self._make_authority, others)

    def _make_authority(self, region: str) -> None:
        home = self.directory / region / "ca"
        if not (home / "regions" / region / "ca.crt").exists():
            self._ca("init", "--region", region)
            (home / "regions").mkdir(parents=True, exist_ok=True)
            shutil.copy(self.safe / "root.crt", home / "root.crt")
            shutil.copytree(self.safe / "regions" / region, home / "regions" / region)
        if not self._tls(region).certificate.exists():
            self._ca("etcd", "--name", region, "--host", self.network.address(region))

    def _ca(self, *words: str) -> None:
        run([EDGE_ORCHESTRATOR, "ca", *words, "--dir", str(self.safe)], os.environ)

    @property
    def safe(self) -> Path:
        """Where the root's key is; no region sees it."""
        return self.directory / "ca"

    def _tls(self, name: str) -> EtcdTls:
        home = self.safe / "etcd" / name
        return EtcdTls(home / "ca.crt", home / "etcd.crt", home / "etcd.key")

    def _know(self) -> None:
        """What follows from the directory and the network, without starting anything."""
        addresses = {place.name: self.network.address(place.name) for place in self._places}
        endpoints = ",".join(f"{a}:{etcd.CLIENT_PORT}" for a in addresses.values())
        client = self._tls(CLIENT)
        for place in self._places:
            name, address = place.name, addresses[place.name]
            netns = self.network.netns(name)
            flags = {
                "ca-dir": str(self.directory / name / "ca"),
                "store": f"etcd:{endpoints}",
                "etcd-ca": str(client.ca),
                "etcd-cert": str(client.certificate),
                "etcd-key": str(client.key),
                "etcd-prefix": PREFIX,
                "location": place.location,
                **({"share-port": ""} if self._members_each > 1 else {}),
                **self._settings,
            }
            self.regions[name] = Region(
                name,
                address,
                netns,
                self.directory / name / "ca",
                EtcdMember(name, self.directory, address, self._tls(name), netns=netns),
                [
                    Member(
                        f"{name}-{n}", name, address, self.directory, flags, netns=netns, number=n
                    )
                    for n in range(1, self._members_each + 1)
                ],
            )
        for name in self.boxes:
            self.agent(name, netns=self.network.netns(name))

    def start_etcd(self, *, wait: bool = True) -> None:
        """All of them at once: one alone has no majority."""
        group = self.etcd_group
        _together(lambda r: r.etcd.start(group, wait=wait), list(self.regions.values()))

    def start_members(self) -> None:
        """One first: it initialises the Store and has the first admin."""
        first, *others = self.members.values()
        first.start()
        _together(Member.start, others)

    @property
    def etcd_group(self) -> dict[str, str]:
        return {name: region.etcd.peer_url for name, region in self.regions.items()}

    @property
    def members(self) -> dict[str, Member]:
        return {m.name: m for region in self.regions.values() for m in region.members}

    def _write_context(self) -> None:
        """The first admin's, with the endpoints of all regions."""
        made = next(m.data_dir / "admin.yaml" for m in self.members.values())
        if not made.exists():  # another member initialised the Store
            made = next(
                m.data_dir / "admin.yaml"
                for m in self.members.values()
                if (m.data_dir / "admin.yaml").exists()
            )
        body = json.loads(made.read_text())
        endpoints = dict.fromkeys(m.endpoint for m in self.members.values())
        body["clusters"][0]["cluster"]["endpoints"] = list(endpoints)
        self.admin_context.touch(mode=0o600)
        self.admin_context.write_text(json.dumps(body, indent=2))

    # --- what is broken, and mended --------------------------------------------------------------

    def cut(self, region: str) -> None:
        """Nobody outside hears of the region; what runs in it runs on."""
        self.network.isolate([region])

    def isolate(self, *places: str) -> None:
        """These hear each other and nobody else."""
        self.network.isolate(places)

    def cut_link(self, one: str, other: str) -> None:
        self.network.block([(one, other)])

    def heal(self, *places: str) -> None:
        """Every line, or every line of these places."""
        self.network.heal(*places)

    def vanish(self, region: str) -> None:
        """Its power goes. Nobody is told: what is sent there is never answered."""
        self.cut(region)
        self.regions[region].kill()

    def revive(self, region: str, *, wait: bool = True) -> None:
        """Power and lines are back."""
        self.heal(region)
        self.regions[region].etcd.start(self.etcd_group, wait=wait)
        for member in self.regions[region].members:
            member.start(wait=wait)

    # --- what is so ------------------------------------------------------------------------------

    def leader(self) -> str:
        """The member whose name is in the Store, read past all orchestrators; empty: nobody."""
        for region in self.regions.values():
            if region.etcd.daemon.pid and (region.name, HOST) not in self._blocked():
                key = base64.b64encode(f"{PREFIX}//leader".encode()).decode()
                try:
                    found = region.etcd.api.ask("kv/range", {"key": key}).get("kvs", [])
                except EtcdRefused:
                    continue
                return base64.b64decode(found[0]["value"]).decode() if found else ""
        return ""

    def _blocked(self) -> set[tuple[str, str]]:
        pairs = self.network.blocked()
        return pairs | {pair[::-1] for pair in pairs}

    def containers(self) -> dict[str, dict[str, int]]:
        """Box -> id of each container that runs -> when it started, in unix ns."""
        return {name: self.containers_of(name) for name in self.boxes}

    # --- down ------------------------------------------------------------------------------------

    def stop(self, *, wipe: bool = True) -> None:
        """Everything that runs, the namespaces and links; with `wipe` the directory, too."""
        self.stop_boxes(wipe=wipe)
        for region in self.regions.values():
            region.kill()
        self.network.stop()
        self._registration.unlink(missing_ok=True)
        if wipe:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def _registration(self) -> Path:
        return RUN_DIRECTORY / f"{self.name}.continent"

    def _register(self) -> None:
        """So that `sweep` finds it if its owner dies."""
        self.directory.mkdir(parents=True, exist_ok=True)
        RUN_DIRECTORY.mkdir(parents=True, exist_ok=True)
        facts = {
            "directory": str(self.directory),
            "owner": self._owner,
            "began": _began(self._owner),
            "regions": [[place.name, place.location] for place in self._places],
            "boxes": self.boxes,
            "members": self._members_each,
        }
        self._registration.write_text(json.dumps(facts))


def sweep() -> list[Path]:
    """Stop what owners left behind that died: their directories. Others are left alone."""
    swept = []
    for file in RUN_DIRECTORY.glob("*.continent"):
        facts = json.loads(file.read_text())
        if not facts["owner"] or _began(facts["owner"]) == facts["began"]:
            continue
        directory = Path(facts["directory"])
        Continent(
            directory,
            regions=[RegionPlace(*place) for place in facts["regions"]],
            boxes=facts["boxes"],
            members=facts["members"],
        ).stop()
        swept.append(directory)
    return swept


def _began(pid: int) -> str:
    """When the process started, in the kernel's words: a pid alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _together(work: Callable[[Any], object], things: Sequence[Any]) -> None:
    with ThreadPoolExecutor(max_workers=max(1, len(things))) as pool:
        for done in [pool.submit(work, thing) for thing in things]:
            done.result()
