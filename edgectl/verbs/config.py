"""`edgectl config ...`: seeing and changing the configuration file."""

import sys
from pathlib import Path

from edgectl import config, config_file
from edgectl.errors import CliError, UsageError
from edgectl.invocation import Invocation
from edgectl.text import Table


def view(invocation: Invocation) -> int:
    sys.stdout.write(config_file.render(config.redacted(invocation.document)))
    return 0


def get_contexts(invocation: Invocation) -> int:
    document = invocation.document
    current = document["currentContext"]
    rows = []
    for name in config.names(document, "contexts"):
        context = config.entry(document, "contexts", name) or {}
        cluster = config.entry(document, "clusters", str(context.get("cluster"))) or {}
        endpoints = cluster.get("endpoints")
        rows.append(
            (
                name,
                "*" if name == current else "",
                context.get("cluster") or "",
                context.get("user") or "",
                context.get("namespace") or config.DEFAULT_NAMESPACE,
                ",".join(map(str, endpoints)) if isinstance(endpoints, list) else endpoints or "",
            )
        )
    if not rows:
        print(f"No contexts in {invocation.config_path}.", file=sys.stderr)
        return 0
    headers = ("NAME", "CURRENT", "CLUSTER", "USER", "NAMESPACE", "ENDPOINTS")
    print("\n".join(Table(headers).lines(rows)))
    return 0


def current_context(invocation: Invocation) -> int:
    current = invocation.document["currentContext"]
    if not current:
        raise CliError("no current context is set", "edgectl config use-context NAME")
    print(current)
    return 0


def use_context(invocation: Invocation) -> int:
    name = invocation.options.name
    config_file.update(invocation.config_path, lambda doc: config.with_current(doc, name))
    print(f"current context: {name}")
    return 0


def set_context(invocation: Invocation) -> int:
    options = invocation.options
    namespace = invocation.explicit_namespace

    def change(document: config.Document) -> config.Document:
        context = dict(config.entry(document, "contexts", options.name) or {})
        for section, key, value in (
            ("clusters", "cluster", options.cluster),
            ("users", "user", options.user),
        ):
            if value and config.entry(document, section, value) is None:
                known = ", ".join(config.names(document, section)) or "none"
                raise CliError(f"there is no {key} {value!r}", f"known: {known}")
            if value:
                context[key] = value
        if namespace:
            context["namespace"] = namespace
        if not context.get("cluster") or not context.get("user"):
            raise UsageError("a new context needs --cluster and --user")
        return config.with_entry(document, "contexts", options.name, context)

    config_file.update(invocation.config_path, change)
    print(f"context {options.name} set")
    return 0


def delete_context(invocation: Invocation) -> int:
    name = invocation.options.name
    config_file.update(invocation.config_path, lambda doc: config.without_context(doc, name))
    print(f"context {name} deleted")
    return 0


def set_values(invocation: Invocation) -> int:
    namespace = invocation.explicit_namespace
    if not namespace:
        raise UsageError("give the --namespace to set")
    wanted = getattr(invocation.options, "context", "")

    def change(document: config.Document) -> config.Document:
        name = wanted or document["currentContext"]
        context = config.entry(document, "contexts", name)
        if context is None:
            raise CliError(f"there is no context {name!r}" if name else "no context is chosen")
        return config.with_entry(document, "contexts", name, {**context, "namespace": namespace})

    config_file.update(invocation.config_path, change)
    print(f"namespace: {namespace}")
    return 0


def import_file(invocation: Invocation) -> int:
    options = invocation.options
    other = _read(options.file)
    names = config.names(other, "contexts")
    if not names:
        raise CliError(f"{options.file}: has no contexts")

    def change(document: config.Document) -> config.Document:
        changed = config.merged(document, other, overwrite=options.overwrite)
        if options.use or not changed["currentContext"]:
            changed = config.with_current(changed, other["currentContext"] or names[0])
        return changed

    changed = config_file.update(invocation.config_path, change)
    print(f"imported: {', '.join(names)}")
    print(f"current context: {changed['currentContext']}")
    return 0


def show_path(invocation: Invocation) -> int:
    print(invocation.config_path)
    return 0


def _read(name: str) -> config.Document:
    """A context file; files that it names are made absolute, because it is not moved with them."""
    if name == "-":
        raw, source, base = sys.stdin.buffer.read(), "<stdin>", Path.cwd()
    else:
        path = Path(name).expanduser()
        try:
            raw = config_file.read_bounded(path, config_file.MAX_CONFIG_BYTES)
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}") from error
        source, base = str(path), path.resolve().parent
    document = config.checked(config_file.parse(raw, source), source)
    for section, inner in config.SECTIONS.items():
        for item in document[section]:
            for key in ("certificateAuthority", "clientCertificate", "clientKey"):
                if isinstance(item[inner].get(key), str):
                    item[inner][key] = str(base / Path(item[inner][key]).expanduser())
    return document
