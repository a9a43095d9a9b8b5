"""The nodes of a site in the place of an orchestrator: `edgectl.reader.Reader`, and the changes.

Made by `Invocation` for `--site-endpoint`. Reads are composed from what all nodes say; logs and
commands go to the node that runs the replica, changes to the one that holds it, or to a standby.
Errors are CallError.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgectl import selectors
from edgectl.errors import CallError, CliError
from edgectl.site import composing, happenings
from edgectl.site.link import Link, Opener
from edgectl.site.picture import Picture, ReplicaPicture
from edgectl.site.survey import Survey, Warn, to_stderr, unreached
from polder.v1 import agent_pb2, common_pb2, local_pb2, operator_pb2

POLL_S = 2.0
EVENTS_MAX = 1_000
KINDS = ("Node", "Replica", "Workload")


@dataclass(frozen=True, slots=True)
class Changed:
    """What one node answered to a change."""

    node: str
    answer: local_pb2.ChangeResponse


class SiteClient:
    """Asks the site when it is first needed; what it then knows is good for this command, but for
    streams that go on."""

    def __init__(self, endpoints: Sequence[str], open_: Opener, warn: Warn = to_stderr) -> None:
        self._survey = Survey(endpoints, open_, warn)
        self._warn = warn
        self._picture: Picture | None = None
        self._told: tuple[str, ...] = ()
        self._watched: dict[tuple[str, str, str], common_pb2.Resource] = {}

    def close(self) -> None:
        self._survey.close()

    # --- what is known ------------------------------------------------------------------------

    @property
    def picture(self) -> Picture:
        return self._picture or self.look()

    def look(self) -> Picture:
        """Ask again. Who did not answer is said once, and again when that changes."""
        self._picture = picture = self._survey.look()
        missing = tuple(unreached(picture))
        gone = tuple(sorted(one.label for one in picture.silent))
        if gone != self._told:
            self._told = gone
            total = len(picture.answers) + len(picture.silent)
            if missing:
                self._warn(f"{len(picture.answers)} of {total} nodes of the site answered")
            for line in missing:
                self._warn(line)
        return picture

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(link.endpoint for link in self._survey.links.values())

    @property
    def answered_by(self) -> tuple[str, int]:
        """Nodes speak of themselves, and now."""
        return self.picture.site, 0

    def settle(self) -> None:
        """Find the nodes."""
        self.look()

    # --- resources ----------------------------------------------------------------------------

    def get(self, ref: common_pb2.ResourceRef) -> operator_pb2.GetResponse:
        """Of a replica that runs twice the one that serves. Raises CallError NOT_FOUND."""
        found = [
            resource
            for resource in self._resources(self.picture, ref.kind, ref.namespace)
            if resource.metadata.name == ref.name
        ]
        if not found:
            raise self._missing(ref)
        best = max(found, key=composing.serves)
        return operator_pb2.GetResponse(resource=best, now_ms=self.picture.now_ms)

    def list_all(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> tuple[list[common_pb2.Resource], int]:
        if selectors.parse(selector):
            raise CliError(
                "the nodes of a site know no labels of resources", "leave --selector out, or use -n"
            )
        found = list(self._resources(self.picture, kind, namespace))
        if not found and namespace:
            self._check_sight(namespace)
        return found, self.picture.now_ms

    def watch(
        self, request: operator_pb2.WatchRequest, timeout_s: float | None = None
    ) -> Iterator[operator_pb2.WatchResponse]:
        """What there is, and then the end: `edgectl.watching` asks again, and compares. Of several
        with one name the one that serves comes last, and counts."""
        picture = self.look()
        found = self._resources(picture, request.kind, request.namespace)
        for resource in sorted(found, key=composing.serves):
            if request.name in ("", resource.metadata.name):
                yield operator_pb2.WatchResponse(
                    type=operator_pb2.WATCH_TYPE_ADDED,
                    resource=self._unless_aged(resource),
                    now_ms=picture.now_ms,
                )
        yield operator_pb2.WatchResponse(type=operator_pb2.WATCH_TYPE_SYNCED, now_ms=picture.now_ms)

    def _unless_aged(self, resource: common_pb2.Resource) -> common_pb2.Resource:
        """As it was told before, where only ages are different: that is no change to tell."""
        key = (resource.kind, resource.metadata.namespace, resource.metadata.name)
        before = self._watched.get(key)
        if before is None or composing.without_age(before) != composing.without_age(resource):
            self._watched[key] = before = resource
        return before

    def story(self, ref: common_pb2.ResourceRef) -> operator_pb2.StoryResponse:
        """An orchestrator composes stories; the events tell what the nodes remember."""
        raise CallError("a site tells no stories", code="UNIMPLEMENTED")

    def _resources(
        self, picture: Picture, kind: str, namespace: str
    ) -> Iterator[common_pb2.Resource]:
        if kind == "Node":
            return composing.nodes(picture)
        if kind == "Replica":
            return composing.replicas(picture, namespace)
        if kind == "Workload":
            return composing.workloads(picture, namespace)
        known = ", ".join(f"{name.lower()}s" for name in KINDS)
        raise CliError(
            f"the nodes of a site know no {kind.lower()}", f"with --site-endpoint there are {known}"
        )

    def _check_sight(self, namespace: str) -> None:
        """Raises CallError where a node refuses to show anything of the namespace: what is not to
        be seen is not the same as what is not there."""
        self._survey.links[min(self.picture.answers)].show(namespace)

    def _missing(self, ref: common_pb2.ResourceRef) -> CallError:
        if ref.namespace:
            self._check_sight(ref.namespace)
        where = f" in namespace {ref.namespace}" if ref.namespace else ""
        silent = sorted(one.label for one in self.picture.silent)
        hint = f"{' and '.join(silent)} did not answer: it may be there" if silent else ""
        text = f"no node that answered knows {ref.kind.lower()}/{ref.name}{where}"
        return CallError(text, hint, code="NOT_FOUND", reason="NotFound")

    # --- what happened ------------------------------------------------------------------------

    def events(self, request: operator_pb2.EventsRequest) -> Iterator[operator_pb2.EventsResponse]:
        """Of all nodes, oldest first, with what operators did there."""
        while True:
            now_ms = time.time_ns() // 1_000_000
            replicas = self._replicas_of(request)
            site, told = self.picture.site, self._recalled(request)
            found = happenings.merged(site, told, request, replicas)
            yield operator_pb2.EventsResponse(events=found, now_ms=now_ms)
            if not request.follow:
                return
            time.sleep(POLL_S)
            self.look()

    def _replicas_of(self, request: operator_pb2.EventsRequest) -> set[str]:
        """Of the workload that is asked for."""
        if request.object.kind != "Workload":
            return set()
        known = self.picture.replicas(request.object.namespace)
        return {found.name for found in known if found.status.workload == request.object.name}

    def _recalled(
        self, request: operator_pb2.EventsRequest
    ) -> Iterator[tuple[str, local_pb2.RecallResponse]]:
        replica = request.object.name if request.object.kind == "Replica" else ""
        limit = min(request.limit or EVENTS_MAX, EVENTS_MAX)
        asked = local_pb2.RecallRequest(namespace=request.namespace, replica=replica, limit=limit)
        for node in sorted(self.picture.answers):
            try:
                yield node, self._survey.links[node].recall(asked)
            except CallError as error:
                if error.reason:
                    raise
                self._warn(f"{node} does not tell what happened there: {error.message}")

    # --- logs and commands --------------------------------------------------------------------

    def logs(self, request: operator_pb2.LogsRequest) -> Iterator[operator_pb2.LogsResponse]:
        link = self._running(request.namespace, request.replica)
        options = agent_pb2.LogOptions()
        options.CopyFrom(request.options)
        if options.since_ms:  # by its clock
            options.since_ms = max(1, options.since_ms - link.offset_ms)
        opened = local_pb2.ReachOpen(
            namespace=request.namespace, replica=request.replica, logs=options
        )
        for message in link.reach(iter([local_pb2.ReachRequest(open=opened)])):
            data = message.stdout or message.stderr
            if data:
                yield operator_pb2.LogsResponse(data=data)
            _check_end(message, request.replica)

    def exec(
        self, requests: Iterator[operator_pb2.ExecRequest]
    ) -> Iterator[operator_pb2.ExecResponse]:
        start = next(requests).start
        link = self._running(start.namespace, start.replica)
        for message in link.reach(_commands(start, requests)):
            _check_end(message, start.replica)
            which = message.WhichOneof("message")
            if which == "stdout":
                yield operator_pb2.ExecResponse(stdout=message.stdout)
            elif which == "stderr":
                yield operator_pb2.ExecResponse(stderr=message.stderr)
            elif which == "end":
                yield operator_pb2.ExecResponse(exit_code=message.end.exit_code)

    def _running(self, namespace: str, name: str) -> Link:
        """The node that runs it now. Raises CallError."""
        replica = self._replica(namespace, name, self.look())
        running = sorted(
            replica.running,
            key=lambda role: (role.replica.status.ready, role.replica.status.epoch),
            reverse=True,
        )
        if running:
            return self._survey.links[running[0].node]
        hearsay = replica.said_to_run(self.picture.silent_nodes)
        if hearsay is not None:
            holder = hearsay.replica.holder
            raise CallError(
                f"replica {name} runs on {holder}, which did not answer",
                f"edgectl --site-endpoint with an address of {holder} may reach it",
                code="UNAVAILABLE",
            )
        missing = set(replica.members) & self.picture.silent_nodes
        raise CallError(
            f"no node that answered runs replica {name}",
            f"edgectl describe replica/{name} tells more",
            code="UNAVAILABLE" if missing else "FAILED_PRECONDITION",
            reason="NotRunning",
        )

    def _replica(self, namespace: str, name: str, picture: Picture) -> ReplicaPicture:
        found = picture.replica(namespace, name)
        if found is None:
            raise self._missing(
                common_pb2.ResourceRef(kind="Replica", namespace=namespace, name=name)
            )
        return found

    # --- changes ------------------------------------------------------------------------------

    def change_replica(self, request: local_pb2.ChangeRequest) -> Changed:
        """At the node that runs it; of one that nobody does, at one that knows of it: members
        before those who only vote."""
        replica = self._replica(request.namespace, request.replica, self.picture)
        running = [role.node for role in replica.running]
        members = [node for node in replica.members if node in self.picture.answers]
        if request.verb == "restart" and not running:
            self._running(request.namespace, request.replica)  # says why not
        chosen = [*running, *members, *(role.node for role in replica.roles)]
        return Changed(chosen[0], self._survey.links[chosen[0]].change(_named(request)))

    def change_site(
        self, request: local_pb2.ChangeRequest
    ) -> tuple[list[Changed], list[tuple[str, CallError]]]:
        """At every node that answers: those that share no replica do not talk to each other. What
        was done, and what failed where. Raises CallError when it failed everywhere."""
        done: list[Changed] = []
        failed: list[tuple[str, CallError]] = []
        named = _named(request)
        for node in sorted(self.picture.answers):
            try:
                done.append(Changed(node, self._survey.links[node].change(named)))
            except CallError as error:
                failed.append((node, error))
        if not done:
            raise failed[0][1]
        return done, failed


def _named(request: local_pb2.ChangeRequest) -> local_pb2.ChangeRequest:
    """With an id, so that it may be sent again."""
    named = local_pb2.ChangeRequest()
    named.CopyFrom(request)
    named.id = named.id or uuid.uuid4().hex
    return named


def _commands(
    start: operator_pb2.ExecStart, requests: Iterator[operator_pb2.ExecRequest]
) -> Iterator[local_pb2.ReachRequest]:
    opened = local_pb2.ReachOpen(
        namespace=start.namespace, replica=start.replica, exec=start.options
    )
    yield local_pb2.ReachRequest(open=opened)
    for request in requests:
        which = request.WhichOneof("message")
        given = agent_pb2.RelayResponse()
        if which == "stdin":
            given.stdin = request.stdin
        elif which == "close_stdin":
            given.close_stdin = True
        elif which == "resize":
            given.resize.CopyFrom(request.resize)
        yield local_pb2.ReachRequest(input=given)


def _check_end(message: agent_pb2.RelayRequest, replica: str) -> None:
    """Raises CallError when the agent could not do it."""
    end = message.end
    if message.WhichOneof("message") != "end" or not end.reason:
        return
    text = f"replica {replica}: {end.message or end.reason}"
    hint = f"edgectl describe replica/{replica} tells more"
    raise CallError(text, hint, code="FAILED_PRECONDITION", reason=end.reason)
