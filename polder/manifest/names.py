"""How names are written in manifests: patterns, each with the words that say what it demands.

Used by the schema, and wherever a name arrives by another way than a manifest (tokens, roles,
selectors, flags). Every pattern is meant for `fullmatch` and takes time linear in the text.
"""

import re

from polder.manifest.text import shown

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_HELP = "a name of lower-case letters, digits and '-', 63 characters at most"
HOST_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
HOST_NAME_HELP = "a name of lower-case letters, digits, '-' and '.'"
QUALIFIED = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
QUALIFIED_HELP = "a name such as app or example.eu/app"
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
LABEL_VALUE_HELP = "a label value: letters, digits, '-', '_' and '.', 63 characters at most"
# A name of digits alone would be taken for a number where ports are referred to.
PORT_NAME = re.compile(r"(?=[-0-9]*[a-z])[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT_NAME_HELP = f"{LABEL_HELP}, with a letter in it"
_PORT_NUMBER = re.compile(r"[1-9][0-9]{0,4}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,252}")
ENV_NAME_HELP = "a variable name of letters, digits, '_' and '.'"
IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\-]{0,511}")
IMAGE_HELP = "an image reference such as registry.example/app@sha256:..."
# Goes into a request line as it is.
HTTP_PATH = re.compile(r"/[!-~]*")
HTTP_PATH_HELP = "a path that starts with '/', of ASCII characters without spaces"
ABSOLUTE_PATH = re.compile(r"/.*", re.DOTALL)
ABSOLUTE_PATH_HELP = "an absolute path"
# Not `.` or `..`, nor the names under which the agent swaps a volume's contents.
FILE_NAME = re.compile(r"(?!\.\.)(?!\.$)[-A-Za-z0-9._]{1,253}")
FILE_NAME_HELP = "a file name of letters, digits, '-', '_' and '.', not beginning with '..'"
FACT = re.compile(
    r"node\.(name|arch)|site\.(name|country|region|provider)"
    r"|replica\.(name|index|epoch)|node\.labels\.[A-Za-z0-9][-A-Za-z0-9_./]{0,316}"
)
FACT_HELP = (
    "one of node.name, node.arch, node.labels.KEY, site.name, site.country, site.region, "
    "site.provider, replica.name, replica.index, replica.epoch"
)


def port_reference(raw: object) -> str:
    """A port's name, or its number as text. Raises ValueError."""
    if isinstance(raw, int) and not isinstance(raw, bool) and 1 <= raw <= 65535:
        return str(raw)
    if isinstance(raw, str):
        if _PORT_NUMBER.fullmatch(raw) and int(raw) <= 65535:
            return raw
        if PORT_NAME.fullmatch(raw):
            return raw
    raise ValueError(f"{shown(raw)} is neither a port's name nor a number from 1 to 65535")
