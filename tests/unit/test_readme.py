"""What the README tells people to type can be typed, and what it points at is there."""

import re
import shlex
from pathlib import Path

import pytest

from edgectl.cli import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (edgectl .*)$", README, re.MULTILINE)
LINKS = re.findall(r"\]\(([^)#]+)", README)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_is_one(line: str) -> None:
    options = parse(shlex.split(line, comments=True)[1:])
    for name in getattr(options, "filename", None) or ():
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("link", LINKS)
def test_a_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
