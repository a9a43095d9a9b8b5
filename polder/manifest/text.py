"""Raw values in error messages, bounded and printable.

Called wherever this package refuses something. What is refused may be a megabyte of text, a number
of a million digits, a list nested a thousand deep, or an escape sequence for a terminal.
"""

from collections.abc import Iterable, Mapping

MAX_KEY = 253
_SHOWN = 60
_SHOWN_BITS = 128


def describe(raw: object) -> str:
    """What a raw value is: `the text 'x'`, `a list`, `nothing`."""
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, list | tuple):
        return "a list"
    if isinstance(raw, str):
        return f"the text {shown(raw)}"
    if isinstance(raw, int | float):
        return f"the number {shown(raw)}"
    return f"a {type(raw).__name__}"


def shown(raw: object) -> str:
    """A raw scalar as one writes it, cut when it is long; anything else is described."""
    if isinstance(raw, str):
        return repr(raw) if len(raw) <= _SHOWN else f"{raw[:_SHOWN]!r}..."
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return describe(raw)
    if isinstance(raw, int) and raw.bit_length() > _SHOWN_BITS:
        return "with far too many digits"  # int to text is quadratic, and refused above 4300 digits
    return str(raw)


def key_text(key: object) -> str:
    """A mapping's key as a part of a path."""
    if not isinstance(key, str):
        return shown(key)
    if not key:
        return "''"
    if len(key) > MAX_KEY:
        key = key[:_SHOWN] + "..."
    return key if key.isprintable() else key.encode("unicode_escape").decode("ascii")


def text_fault(text: str) -> str:
    """Why no container, file or message could carry this text; empty when it can be carried."""
    if "\x00" in text:
        return "contains a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # JSON can say "\ud800"
            return "contains half of a surrogate pair, which is no character"
    return ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: the same but for case, '_' and '-', or one edit."""
    if len(word) > MAX_KEY:
        return None
    folded = word.replace("_", "").replace("-", "").lower()
    candidates = sorted(known)
    for candidate in candidates:
        if candidate.lower() == folded:
            return candidate
    for candidate in candidates:
        if len(candidate) > 2 and one_edit(candidate.lower(), folded):
            return candidate
    return None


def one_edit(a: str, b: str) -> bool:
    """Whether at most one insertion, deletion, substitution or swap of neighbours parts the two."""
    if abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    rest_a, rest_b = a[start:], b[start:]
    return (
        rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or rest_a[1:] == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )
