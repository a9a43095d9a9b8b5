"""The effective plan: the plan in use, with the site's own decisions laid over it.

Called by `agent/site/loop.py` for every Decide; what comes out goes to the reconciler, which knows
nothing of sites. So a replica that was taken over runs exactly as one that was assigned, and what
the plan says of everything else holds unchanged.

    the stay                  the plan            becomes
    runs                      assigns its uid     that assignment, with the risen epoch
    runs                      has its replica     an assignment made from the role, or from the
                                                  assignment of another stay of it
    runs                      knows nothing       nothing: as an orphan it runs on
    stops or waits            assigns its uid     the assignment, held: it stays visible, and says
                                                  why nothing runs
    waits                     does not assign it  an assignment as above, held
    stops                     does not assign it  a Stop
    stops by the plan                             the plan's Stop
"""

from collections.abc import Iterable
from dataclasses import replace

from agent.domain.plan import Assignment, Hold, ParsedPlan, Stop
from agent.domain.roster import Key
from agent.domain.site.messages import Stay
from polder.manifest import Container, PodTemplate


def overlay(plan: ParsedPlan, stays: Iterable[Stay]) -> ParsedPlan:
    """The same plan when there is nothing to lay over it."""
    assignments = dict(plan.assignments)
    stops = dict(plan.stops)
    held: dict[str, Hold] = {}
    for stay in stays:
        if stay.uid in plan.stops:
            continue
        planned = plan.assignments.get(stay.uid)
        source = planned if planned is not None else source_of(plan, stay.key)
        if planned is None and stay.stop and not stay.waits:
            stops[stay.uid] = _stop(plan, stay, source)
        elif source is not None:
            risen = stay.epoch if planned is None else max(stay.epoch, planned.epoch)
            assignments[stay.uid] = replace(
                source,
                template=source.template if planned is not None else as_fetched(source.template),
                replica_uid=stay.uid,
                epoch=stay.epoch if stay.leased else risen,
                replaces=planned.replaces if planned is not None else "",
                takes_over="" if planned is not None else stay.takes_over,
            )
            if stay.stop:
                held[stay.uid] = Hold(stay.stop, stay.message, stay.waits)
    if not held and assignments == plan.assignments and stops == plan.stops:
        return plan
    return replace(plan, assignments=assignments, stops=stops, held=held)


def source_of(plan: ParsedPlan, key: Key) -> Assignment | None:
    """What a stay of this replica runs, by the plan's word: of another node's, or of our own
    newest. None for a replica that the plan does not name, or that we only vote on."""
    role = plan.roles.get(key)
    if role is not None and role.assignment.template is not None:
        return role.assignment
    own = [a for a in plan.assignments.values() if a.key == key]
    return max(own, key=lambda a: a.epoch, default=None)


def as_fetched(template: PodTemplate | None) -> PodTemplate | None:
    """With the images that a standby got ahead of time, also where they are to be pulled anew for
    each start: the registry may be what cannot be reached."""
    if template is None:
        return None
    return replace(
        template,
        containers=tuple(_as_fetched(container) for container in template.containers),
        init_containers=tuple(_as_fetched(container) for container in template.init_containers),
    )


def _as_fetched(container: Container) -> Container:
    if container.image_pull_policy != "Always":
        return container
    return replace(container, image_pull_policy="IfNotPresent")


def _stop(plan: ParsedPlan, stay: Stay, source: Assignment | None) -> Stop:
    return Stop(
        namespace=source.namespace if source is not None else "",
        replica=stay.key[1],
        replica_uid=stay.uid,
        cause=stay.stop,
        message=stay.message,
        requested_at=plan.issued_at,
    )
