"""Printing resources in the format that -o asks for. Called by get, apply and version."""

import json
from collections.abc import Sequence
from typing import Any

from edgectl import columns
from edgectl.errors import UsageError
from edgectl.resources import Item
from edgectl.text import Table
from polder.manifest import API_VERSION

_FORMATS = ("", "wide", "name", "json", "yaml")


class Printer:
    """Raises UsageError for an unknown format. `namespaces`: tables have that column."""

    def __init__(self, output: str, *, namespaces: bool = False, show_headers: bool = True) -> None:
        word, _, template = output.partition("=")
        if word == "jsonpath" and template:
            from edgectl.jsonpath import Template

            self._template: Template | None = Template(template)
        elif output in _FORMATS:
            self._template = None
        else:
            raise UsageError(
                f"-o {output!r} is not a format", "formats: wide, json, yaml, name, jsonpath=..."
            )
        self.format = word
        self._namespaces = namespaces
        self._show_headers = show_headers
        self._tables: dict[str, Table] = {}

    @property
    def is_table(self) -> bool:
        return self.format in ("", "wide")

    def all(self, groups: Sequence[tuple[str, Sequence[Item]]], *, single: bool) -> str:
        """(kind, items) groups as one text. `single`: one named resource, shown without a list."""
        items = [item for _, group in groups for item in group]
        if self.is_table:
            filled = [(kind, group) for kind, group in groups if group]
            prefixed = len(filled) > 1
            return "\n".join(self.rows(kind, group, prefixed) for kind, group in filled)
        if self.format == "name":
            return "".join(f"{item.label}\n" for item in items)
        if single and len(items) == 1:
            return self.document(items[0].view())
        return self.document(
            {"apiVersion": API_VERSION, "kind": "List", "items": [item.view() for item in items]}
        )

    def one(self, item: Item) -> str:
        """The next resource of a watch."""
        if self.is_table:
            return self.rows(item.kind, [item], False)
        if self.format == "name":
            return f"{item.label}\n"
        text = self.document(item.view())
        if self.format == "json":
            text = json.dumps(item.view(), ensure_ascii=False) + "\n"  # a line for each change
        return f"---\n{text}" if self.format == "yaml" else text

    def rows(self, kind: str, items: Sequence[Item], prefixed: bool) -> str:
        namespaces = self._namespaces and bool(items) and bool(items[0].namespace)
        table = self._tables.get(kind)
        if table is None:
            titles = self.headers(kind, namespaces=namespaces)
            table = self._tables[kind] = Table(titles, show_headers=self._show_headers)
        rows = [self.cells(item, namespaces=namespaces, prefixed=prefixed) for item in items]
        return "".join(f"{line}\n" for line in table.lines(rows))

    def headers(self, kind: str, *, namespaces: bool) -> list[str]:
        """Of a kind's table."""
        return columns.headers(kind, wide=self.format == "wide", namespaces=namespaces)

    def cells(self, item: Item, *, namespaces: bool, prefixed: bool) -> list[str]:
        """Under `headers`."""
        wide = self.format == "wide"
        return columns.row(item, wide=wide, namespaces=namespaces, prefixed=prefixed)

    def document(self, data: Any) -> str:
        if self._template is not None:
            return self._template.render(data)
        return structured(self.format, data)


def structured(output: str, data: Any) -> str:
    """JSON or YAML. Raises UsageError for another format."""
    if output == "json":
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if output == "yaml":
        from edgectl.config_file import render

        return render(data)
    raise UsageError(f"-o {output!r} is not supported here", "formats: json, yaml")
