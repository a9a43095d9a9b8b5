"""The rules of placement: reasons that last until somebody changes a manifest or a fact.

Asked through `filters.py`. Answers are kept in the table by what the rule asks, since thousands of
workloads ask the same.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from orchestrator.domain.inventory import covers
from orchestrator.scheduling.expressions import holds, phrase
from orchestrator.scheduling.reasons import NO_POLICY, Need, Reason, forbidden_reason
from orchestrator.scheduling.snapshot import IMAGE_PLATFORM, Node
from orchestrator.scheduling.table import Mask, NodeTable
from polder.manifest import Taint, Toleration
from polder.manifest.placement import LabelExpression
from polder.sovereignty import Reason as SovereigntyReason


class Architecture:
    code = "WrongArchitecture"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        wanted = need.placement.arch
        if not wanted:
            return table.nowhere

        def compute() -> Mask:
            passing = np.zeros(table.size, dtype=np.bool_)
            for arch in wanted:
                passing |= table.equal("arch", arch)
            return ~passing

        return table.memo((self.code, wanted), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        found = table.nodes[row].arch
        text = f"the node is {found or 'unknown'}; the workload runs on "
        text += " or ".join(need.placement.arch)
        return (Reason(self.code, text, "placement.arch", found or None),)


class Selector:
    """`nodeSelector` and `matchExpressions`."""

    code = "SelectorMismatch"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        asked, expressions = need.placement.node_selector, need.placement.match_expressions
        if not asked and not expressions:
            return table.nowhere
        failing = np.zeros(table.size, dtype=np.bool_)
        for key, value in asked.items():
            mask = partial(_label_differs, table, key, value)
            failing |= table.memo((self.code, key, value), mask)
        for item in expressions:
            failing |= table.memo((self.code, item), partial(_label_fails, table, item))
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        labels = table.nodes[row].labels
        found = []
        for key, value in sorted(need.placement.node_selector.items()):
            if labels.get(key) != value:
                has = f"is {labels[key]}" if key in labels else "is missing"
                text = f"the label {key} {has}; the workload asks for {value}"
                knob = f"placement.nodeSelector.{key}"
                found.append(Reason(self.code, text, knob, labels.get(key)))
        for item in need.placement.match_expressions:
            if not holds(item.operator, item.values, labels.get(item.key)):
                has = f"is {labels[item.key]}" if item.key in labels else "is missing"
                asked = phrase(item.operator, item.values)
                text = f"the label {item.key} {has}; the workload asks that it {asked}"
                found.append(Reason(self.code, text, f"placement.matchExpressions.{item.key}"))
        return tuple(found)


def _label_differs(table: NodeTable, key: str, value: str) -> Mask:
    differs: Mask = (table.label(key) != value).astype(np.bool_)
    return differs


def _label_fails(table: NodeTable, item: LabelExpression) -> Mask:
    column = table.label(item.key)
    verdicts = {text: not holds(item.operator, item.values, text) for text in set(column.tolist())}
    return np.array([verdicts[text] for text in column.tolist()], dtype=np.bool_)


class DeviceAttributes:
    """A node whose devices differ is judged by the worst: nobody can say which one is free."""

    code = "DeviceMismatch"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        expressions = need.placement.device_expressions
        if not expressions:
            return table.nowhere

        def compute() -> Mask:
            verdicts = [bool(_device_faults(need, node.devices)) for node in table.nodes]
            return np.array(verdicts, dtype=np.bool_)

        return table.memo((self.code, expressions), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        return tuple(_device_faults(need, table.nodes[row].devices))


def _device_faults(
    need: Need, devices: Mapping[str, tuple[Mapping[str, str], ...]]
) -> list[Reason]:
    found = []
    for item in need.placement.device_expressions:
        known = devices.get(item.device, ())
        has = [facts.get(item.attribute) for facts in known]
        bad = [text for text in has if not holds(item.operator, item.values, text)]
        if known and not bad:
            continue
        knob = f"placement.deviceExpressions.{item.device}.{item.attribute}"
        if not known:
            text = f"the node tells nothing of {item.device}"
        else:
            found_text = "is missing" if bad[0] is None else f"is {bad[0]}"
            asked = phrase(item.operator, item.values)
            text = f"{item.attribute} of {item.device} {found_text}; it is asked that it {asked}"
        found.append(Reason("DeviceMismatch", text, knob))
    return found


class Taints:
    """`effects`: which of them count. For replicas that are there already only NoExecute does."""

    code = "Untolerated"

    def __init__(self, *effects: str) -> None:
        self._effects = effects

    def failing(self, table: NodeTable, need: Need) -> Mask:
        tolerations = need.placement.tolerations

        def compute() -> Mask:
            sets, codes = table.taint_sets()
            verdicts = [any(self._untolerated(taints, tolerations)) for taints in sets]
            failing: Mask = np.array(verdicts, dtype=np.bool_)[codes]
            return failing

        return table.memo((self.code, self._effects, tolerations), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        found = []
        for taint in self._untolerated(table.nodes[row].taints, need.placement.tolerations):
            value = f"={taint.value}" if taint.value else ""
            text = f"the taint {taint.key}{value}:{taint.effect} is not tolerated"
            found.append(
                Reason(self.code, text, f"placement.tolerations.{taint.key}", taint.effect)
            )
        return tuple(found)

    def _untolerated(
        self, taints: tuple[Taint, ...], tolerations: tuple[Toleration, ...]
    ) -> Iterator[Taint]:
        for taint in taints:
            if taint.effect in self._effects and not any(
                tolerates(toleration, taint) for toleration in tolerations
            ):
                yield taint


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """An empty key matches every taint, an empty effect every effect, no value every value."""
    return (
        toleration.key in ("", taint.key)
        and toleration.effect in ("", taint.effect)
        and toleration.value in (None, taint.value)
    )


class HostPaths:
    """Paths of the box that the box's own configuration does not let replicas see."""

    code = "HostPathNotAllowed"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        paths = need.template.host_paths
        if not paths:
            return table.nowhere

        def compute() -> Mask:
            failing = [bool(self._refused(node, paths)) for node in table.nodes]
            return np.array(failing, dtype=np.bool_)

        return table.memo((self.code, paths), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        node = table.nodes[row]
        allowed = ", ".join(node.host_paths) or "none"
        return tuple(
            Reason(
                self.code,
                f"the box does not let replicas see {path}; its host_paths: {allowed}",
                "template.volumes.hostPath",
            )
            for path in self._refused(node, need.template.host_paths)
        )

    def _refused(self, node: Node, paths: tuple[str, ...]) -> list[str]:
        return [path for path in paths if not any(covers(one, path) for one in node.host_paths)]


class Images:
    """Where an image of the template does not exist for the node, as nodes found out; and nodes
    that did not say yet what they are."""

    code = IMAGE_PLATFORM

    def failing(self, table: NodeTable, need: Need) -> Mask:
        nodes, archs = need.template.foreign_nodes, need.template.foreign_archs
        if not nodes:
            return table.nowhere

        def compute() -> Mask:
            failing = np.zeros(table.size, dtype=np.bool_)
            for arch in (*archs, "") if archs else ():
                failing |= table.equal("arch", arch)
            failing[[table.index[node] for node in nodes if node in table.index]] = True
            return failing

        return table.memo((self.code, nodes, archs), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        node, told = table.nodes[row], need.template.foreign_nodes
        if node.name in told:
            who = "says the node itself"
        else:
            who = f"say node {told[0]} and others"
        what = node.arch or f"{' or '.join(need.template.foreign_archs)}, and its own is not known"
        text = f"an image of it does not exist for {what}, {who}"
        return (Reason(self.code, text),)


class Allowance:
    """What the namespace must allow: if it does not, no node will do."""

    code = "NotAllowed"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        return ~table.nowhere if need.forbidden else table.nowhere

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        return tuple(forbidden_reason(need.namespace, name) for name in need.forbidden)


class Admitted:
    """Sites to which the rollout has come. Elsewhere usually the revision from before is placed:
    this is for when that is not in the store any more."""

    code = "NotAdmitted"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        sites = need.admitted
        if sites is None:
            return table.nowhere
        known = np.array([name not in sites for name in table.site_names], dtype=np.bool_)
        failing: Mask = known[table.site_codes]
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        site = table.nodes[row].site
        return (Reason(self.code, f"the rollout has not come to site {site or 'none'} yet"),)


class NearSite:
    code = "TooFar"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        near = need.placement.near
        if near is None:
            return table.nowhere

        def compute() -> Mask:
            rtt = table.rtt_ms(near.site)
            # NaN, a site that is not where is known, is never near: closed on unknowns.
            failing: Mask = ~(rtt <= near.rtt_ms_max)
            return failing[table.site_codes]

        return table.memo((self.code, near), compute)

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        near = need.placement.near
        assert near is not None
        here = table.nodes[row].site
        rtt = float(table.rtt_ms(near.site)[table.site_codes[row]])
        knob = "placement.near.rttMsMax"
        if rtt != rtt:
            text = f"the coordinates of site {near.site} or of site {here} are not declared"
            return (Reason(self.code, text, "placement.near"),)
        text = f"site {here} is about {rtt:.1f} ms from site {near.site}; "
        text += f"at most {near.rtt_ms_max:g} ms is asked"
        return (Reason(self.code, text, knob, round(rtt + 0.05, 1)),)


class Sovereignty:
    """The effective policy, judged by `polder.sovereignty` on the facts of the node's site."""

    code = "NotSovereign"

    def failing(self, table: NodeTable, need: Need) -> Mask:
        if need.policy is NO_POLICY and need.floor is NO_POLICY:
            return table.nowhere
        admitted = table.policies.admitted(need.policy, need.floor)
        if admitted is None:
            return table.nowhere
        failing: Mask = ~admitted[table.cell_of]
        return failing

    def why(self, table: NodeTable, need: Need, row: int) -> tuple[Reason, ...]:
        found = table.policies.reasons(need.effective, int(table.site_codes[row]))
        return tuple(
            Reason(one.code, one.message, f"sovereignty.{one.knob}", loosened(one)) for one in found
        )


def loosened(reason: SovereigntyReason) -> str | float | None:
    """The weakest demand that the fact meets; None: the demand would have to go."""
    if reason.predicate in ("forbidLaws", "certifications", "ownership"):
        return None
    return reason.actual


SOVEREIGNTY = Sovereignty()
_MANIFEST_RULES = (Architecture(), Selector(), DeviceAttributes(), NearSite())
PLAIN_RULES = (*_MANIFEST_RULES, Taints("NoSchedule", "NoExecute"))
HOST_PATHS = HostPaths()
IMAGES = Images()
TEMPLATE_RULES = (HOST_PATHS, IMAGES, Allowance(), Admitted())
"""Of new stays only: what runs is left alone."""
RULES = (*PLAIN_RULES, *TEMPLATE_RULES, SOVEREIGNTY)
STAYING_RULES = (*_MANIFEST_RULES, Taints("NoExecute"))
"""What moves a replica that is there already. A replica that is no longer compliant is another
matter: it moves when a compliant place exists, and never just stops."""
