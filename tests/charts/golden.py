"""Writes what the chart comes to: `python -m tests.charts.golden`, after a change that is meant.

The files are read in a review: they show what a change of a template does to a cluster.
"""

from pathlib import Path

import yaml

from tests.charts.cases import APIS, CASES, GOLDEN
from tests.charts.helm import Rendered, render

FOLDER = Path(__file__).parent / "golden"


def golden_text(rendered: Rendered) -> str:
    """Without comments and the order of templates, which mean nothing to a cluster."""
    ordered = sorted(rendered.objects, key=lambda o: (o["kind"], o["metadata"]["name"]))
    return yaml.safe_dump_all(ordered, sort_keys=False, width=100)


def main() -> None:
    for name in GOLDEN:
        (FOLDER / f"{name}.yaml").write_text(golden_text(render(CASES[name], apis=APIS)))


if __name__ == "__main__":
    main()
