"""`edgectl edit TYPE/NAME`: the editor of the operator's choice, and back only if all is well.

Whatever cannot be applied is kept in a file that is named: nothing that was typed is lost.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from edgectl import differences, editing, targets
from edgectl.config_file import read_bounded, render
from edgectl.errors import CallError, CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.manifests import MAX_FILE_BYTES
from edgectl.resources import Item, reference
from edgectl.targets import Target
from edgectl.text import age, clock, safe
from edgectl.verbs.apply import OUTCOMES
from edgectl.yaml_nodes import Problem
from polder.v1 import common_pb2, operator_pb2

TRIES_MAX = 50  # an editor may be a program that never gets it right
REDACTED = "REDACTED"  # what the server sends to whoever may not read secrets


def run(invocation: Invocation) -> int:
    word = invocation.options.target
    target = targets.parse([word], names_needed=True)[0]
    if not target.info.editable:
        raise UsageError(f"{target.label} is read-only")
    return _Edit(invocation, target).run()


class _Edit:
    """One edit: `base` is what the operator started from, and what the write compares on."""

    def __init__(self, invocation: Invocation, target: Target) -> None:
        self._client = invocation.client
        self._label = target.label
        namespace = invocation.namespace if target.info.namespaced else ""
        self._ref: common_pb2.ResourceRef = reference(target.info.name, namespace, target.name)
        self._kept = invocation.options.filename
        self._base = self._read()
        _refuse_hidden(self._base)

    def run(self) -> int:
        original = render(self._base.manifest())
        comments = editing.heading(self._base)
        body = original
        if self._kept:
            body = editing.without_comments(_text(Path(self._kept)))
            comments += _differs(self._label, self._base, body)
        text = editing.with_comments(comments, body)
        path = _temporary()
        problems: tuple[Problem, ...] = ()
        for _ in range(TRIES_MAX):
            path.write_text(text)
            saved = editing.without_comments(self._edited(path))
            if not saved.strip() or saved == original:
                self._gone(path)
                print("nothing was saved" if not saved.strip() else "nothing was changed")
                return 0
            if problems and saved == body:
                raise CliError(
                    f"{self._label} was not changed: the same problems are still there",
                    *self._where(path),
                )
            body = saved
            problems = self._apply(saved, path)
            if not problems:
                self._gone(path)
                return 0
            text = editing.with_problems(comments, problems, body)
        raise CliError(
            f"{self._label} was not changed: after {TRIES_MAX} tries there are still problems",
            *self._where(path),
        )

    def _apply(self, body: str, path: Path) -> tuple[Problem, ...]:
        """What is wrong; empty when it stands. Raises CliError when editing again cannot help."""
        edited = editing.checked(body, self._base)
        if edited.document is None:
            return edited.problems
        request = operator_pb2.Document(
            json=edited.document.encoded(),
            expected_revision=self._base.resource.metadata.revision,
        )
        try:
            response = self._client.apply([request])
        except CallError as error:
            if error.violations:
                return editing.from_server(error.violations, edited.document)
            if error.reason == "Conflict":
                raise self._conflict(path) from error
            error.hints = (*error.hints, *self._where(path))
            raise
        result = response.results[0]
        for warning in result.warnings:
            print(f"warning: {self._label}: {safe(warning)}", file=sys.stderr)
        print(f"{self._label} {OUTCOMES.get(result.outcome, 'applied')}")
        return ()

    def _conflict(self, path: Path) -> CliError:
        """Who was faster, and what they changed."""
        again = f"edgectl edit {self._label} -f {path}"
        try:
            theirs = self._read()
        except CallError as error:
            if error.code != "NOT_FOUND":
                raise
            return CliError(
                f"{self._label} was deleted while you edited it; nothing was applied",
                f"your text is in {path}; edgectl apply -f {path} makes it anew",
            )
        metadata = theirs.resource.metadata
        who = metadata.changed_by or "somebody"
        when = ""
        if metadata.changed_at_ms:
            ago = age(metadata.changed_at_ms, theirs.now_ms)
            when = f" at {clock(metadata.changed_at_ms, theirs.now_ms)} ({ago} ago)"
        print(f"What {who} changed meanwhile:", file=sys.stderr)
        changed = differences.unified(
            self._label,
            self._base.manifest(),
            theirs.manifest(),
            names=("as you opened it", f"by {who}"),
        )
        sys.stderr.write(changed or "  (nothing that a manifest has)\n")
        return CliError(
            f"{self._label} was changed by {who}{when} while you edited it; "
            "nothing of yours was applied",
            f"your text is kept: {again}",
            "opens it again and shows how it differs from what is there now",
        )

    def _edited(self, path: Path) -> str:
        """Waits for the editor. Raises CliError when it fails."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        try:
            command = [*shlex.split(editor), str(path)]
            code = subprocess.run(command, check=False).returncode
        except (OSError, ValueError) as error:
            self._gone(path)
            reason = getattr(error, "strerror", None) or str(error)
            raise CliError(
                f"the editor {editor!r} cannot be started: {reason}", "set VISUAL or EDITOR"
            ) from error
        if code:
            raise CliError(
                f"the editor ended with exit code {code}; nothing was applied", *self._where(path)
            )
        return _text(path)

    def _where(self, path: Path) -> list[str]:
        return [f"your text is in {path}; edgectl edit {self._label} -f {path} goes on with it"]

    def _gone(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def _read(self) -> Item:
        answer = self._client.get(self._ref)
        return Item(answer.resource, answer.now_ms)


def _refuse_hidden(item: Item) -> None:
    data = item.spec.get("data")
    if item.kind == "Secret" and isinstance(data, dict) and REDACTED in data.values():
        raise CliError(
            f"{item.label}: you may not read its values, and saving would overwrite them",
            "apply its manifest instead",
        )


def _differs(label: str, base: Item, body: str) -> list[str]:
    """What saving the kept text as it is would change of what is there now."""
    edited = editing.checked(body, base)
    if edited.document is None:
        return ["", "This is the text that was kept."]
    now = json.loads(json.dumps(base.manifest()))
    text = differences.unified(label, now, edited.document.raw, names=("now", "your text"))
    if not text:
        return ["", "The text that was kept says what is there already."]
    title = "This is the text that was kept. Saved as it is, it changes of what is there now:"
    return ["", title, *(f"  {line}" for line in text.splitlines()[2:])]


def _temporary() -> Path:
    """Private: a Secret may be in it."""
    descriptor, name = tempfile.mkstemp(prefix="edgectl-edit-", suffix=".yaml")
    os.close(descriptor)
    return Path(name)


def _text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode(errors="replace")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}") from error
