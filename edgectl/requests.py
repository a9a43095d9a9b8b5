"""Files as one request to a question about them (why, plan): all documents of all files together.

Apply sends file by file; a question is about what would be when everything is there.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgectl.errors import CallError, CliError, InvalidFiles
from edgectl.manifests import ManifestFile
from polder.v1 import operator_pb2

T = TypeVar("T")

DOCUMENTS_MAX = 2_000


def ask(
    files: Sequence[ManifestFile],
    what: str,
    call: Callable[[list[operator_pb2.Document]], T],
) -> T:
    """The answer. Raises InvalidFiles with lines of the files when the server finds violations."""
    documents = [document for file in files for document in file.documents]
    if len(documents) > DOCUMENTS_MAX:
        raise CliError(f"{len(documents)} documents; at most {DOCUMENTS_MAX} are {what} at once")
    try:
        return call([operator_pb2.Document(json=document.encoded()) for document in documents])
    except CallError as error:
        if not error.violations:
            raise
        refused = InvalidFiles("apply would refuse this", _lines(files, error))
        raise refused from error


def _lines(files: Sequence[ManifestFile], error: CallError) -> list[str]:
    places = [(file, index) for file in files for index in range(len(file.documents))]
    lines: list[str] = []
    for number, path, message in error.violations:
        if 0 <= number < len(places):
            file, index = places[number]
            lines += file.from_server([(index, path, message)])
        else:
            lines.append(f"{path}: {message}")
    return lines
