"""Files as requests. A question (why, plan) is about all of them together, in one.

Apply and diff send as many files together as a request takes, so that what one file needs of
another is there, in whatever order they come.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from edgectl.errors import CallError, CliError, InvalidFiles
from edgectl.manifests import ManifestFile, references
from polder.v1 import operator_pb2

T = TypeVar("T")

DOCUMENTS_MAX = 2_000
BYTES_MAX = 3 << 20  # the server takes 4 MiB


def bundles(files: Sequence[ManifestFile]) -> list[list[ManifestFile]]:
    """The files of each request, in their order. A resource that is in two files is sent twice, and
    the later one holds."""
    found: list[list[ManifestFile]] = []
    count, size, known = 0, 0, set[tuple[str, str, str]]()
    for file in files:
        own = set(references(file))
        more = sum(len(document.encoded()) for document in file.documents)
        full = count + len(own) > DOCUMENTS_MAX or size + more > BYTES_MAX
        if not found or full or known & own:
            found.append([])
            count, size, known = 0, 0, set()
        found[-1].append(file)
        count, size, known = count + len(own), size + more, known | own
    return found


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
        refused = InvalidFiles("apply would refuse this", lines_of(files, error))
        raise refused from error


def lines_of(files: Sequence[ManifestFile], error: CallError) -> list[str]:
    """The server's violations by file and line, of a request that has all of them in order."""
    places = [(file, index) for file in files for index in range(len(file.documents))]
    lines: list[str] = []
    for number, path, message in error.violations:
        if 0 <= number < len(places):
            file, index = places[number]
            lines += file.from_server([(index, path, message)])
        else:
            lines.append(f"{path}: {message}")
    return lines
