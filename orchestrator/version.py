"""Which version this process runs. Asked by `main.py`, `server.py` and `members.py`."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version


def running_version() -> str:
    """Of the installed distribution."""
    try:
        return package_version("polder")
    except PackageNotFoundError:
        return "0+source"
