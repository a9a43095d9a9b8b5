"""Runs the site's state machine: hears peers, plans, the runtime and the clock; does what it says.

`agent/service.py` makes one SiteLoop and runs it for as long as the agent lives:

    boot()                    before the first plan: what was kept, and for how long alone
    use_plan(plan)            a plan that was accepted; what the site decides is laid over it, and
                              only that goes to the supervisor
    replicas_changed()        the supervisor has other views
    box_changed()             the inventory is another one
    switch_changed(alive)     the dead-man's switch is there, or is not
    orchestrator_heard()      a session with one began; that it lives is looked at now and then
    run()                     until cancelled
    stop()                    the agent ends and is to begin anew soon: peers are told
    change(), check()         what a local operator decides; restart() is none that lasts
    overrides()               all that operators decided at the site; on_overrides hears of changes
    find()                    the replica of a name
    standbys()                what could be taken over here, for the orchestrator
    shown()                   peers and standbys, for who stands at the box
    heard(), known()          the same for operators: which peers, and who has what
    isolated_s()              for how long alone; autonomy_s(): how long that may last

What is sent and saved is so at once. What concerns the runtime and the dead-man's switch is done
one after the other, so that nothing starts that is not armed before; of several decisions that wait
the last one counts.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from agent import steady_clock, translate
from agent.domain.given import given_by
from agent.domain.instructions import Emit
from agent.domain.plan import ParsedPlan
from agent.domain.roster import AUTONOMY_S, Key
from agent.domain.site.known import Known
from agent.domain.site.machine import SiteMachine
from agent.domain.site.messages import (
    Ability,
    AbleTo,
    Answer,
    Arm,
    Armed,
    Booted,
    Condition,
    Decide,
    Disarm,
    Event,
    Instruction,
    OrchestratorHeard,
    Overrides,
    PeerClosed,
    PeerOpened,
    PeerSaid,
    PlanInUse,
    RunsHere,
    Said,
    Save,
    Saved,
    Send,
    Stay,
    Stopping,
    SwitchChanged,
    Tell,
    Tick,
)
from agent.domain.site.overlay import overlay
from agent.domain.site.refusing import find
from agent.site.abilities import Judge, Judged, deaf
from agent.site.alone import NAME as ALONE
from agent.site.alone import Alone, save_every_s
from agent.site.deciding import Deciding, Refused
from agent.site.memory import Memory
from agent.site.network import Network
from agent.site.prefetch import Prefetch
from agent.site.proofs import Proofs
from agent.site.restarts import NAME as RESTARTS
from agent.site.restarts import Restarts
from agent.site.surroundings import Surroundings
from agent.site.switch_client import SwitchClient
from agent.steady_clock import boottime
from agent.supervisor import Supervisor
from polder.overrides import Override
from polder.v1 import agent_pb2

log = logging.getLogger(__name__)

SIGNS_EVERY_S = 5.0
JUDGE_EVERY_S = 3600.0
RENEW_S = 1.0  # for leases to be renewed before the agent ends
SAVE_S = 1.5  # and for what is to be saved


class SiteLoop:
    """Owns a SiteMachine. All methods belong to one event loop."""

    def __init__(
        self,
        node: str,
        supervisor: Supervisor,
        memory: Memory,
        network: Network,
        prefetch: Prefetch,
        judge: Judge,
        switch: SwitchClient,
        around: Surroundings,
        proofs: Proofs,
    ) -> None:
        self._node = node
        self._machine = SiteMachine(node)
        self._supervisor = supervisor
        self._memory = memory
        self._network = network
        self._prefetch = prefetch
        self._judge = judge
        self._switch = switch
        self._around = around
        self._alone = Alone(around.boot_id, boottime())
        self._plan: ParsedPlan | None = None
        self._stays: tuple[Stay, ...] = ()
        self._in_force: ParsedPlan | None = None
        self._judged: dict[Key, Judged] = {}
        self._told: list[agent_pb2.StandbyStatus] = []
        self._restarts = Restarts(memory, supervisor)
        self._deciding = Deciding(self._machine, proofs, self._handle, supervisor.report)
        self._overrides: tuple[Override, ...] = ()
        self.on_overrides: Callable[[tuple[Override, ...]], None] = lambda _overrides: None
        self._acts: deque[Arm | Disarm | Decide] = deque()
        self._act = asyncio.Event()
        self._exclusive = asyncio.Event()
        self._saves: set[asyncio.Task[None]] = set()
        self._looking = self._judging = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        network.hears(self._opened, self._closed, self._said, self._judge_soon)
        prefetch.on_change = self._judge_soon

    # ---- for the rest of the agent ----

    async def boot(self) -> None:
        """Never fails: without its memory the node is careful, and says so."""
        kept = await asyncio.to_thread(self._memory.load)
        if kept.damaged:
            self._supervisor.report("SiteMemoryDamaged", kept.damaged)
        bodies = dict(kept.bodies)
        self._restarts.read(bodies.pop(RESTARTS, {}))
        now = boottime()
        self._alone = Alone.read(bodies.pop(ALONE, {}), self._around.boot_id, now, time.time())
        alone_s, damaged = self._alone.for_s(now), bool(kept.damaged)
        self._handle(Booted(self._node, bodies, kept.same_boot, alone_s, damaged))

    def use_plan(self, plan: ParsedPlan) -> None:
        self._plan = plan
        self._network.use(plan.site.peers)
        if has_exclusive(plan):
            self._exclusive.set()
        self._prefetch.use(plan.roles.values(), given_by(plan))
        self._handle(PlanInUse(plan))
        self._judge_soon()

    def replicas_changed(self) -> None:
        """Looked at once per turn of the event loop."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def box_changed(self) -> None:
        self._judge_soon()

    def switch_changed(self, alive: bool) -> None:
        self._handle(SwitchChanged(alive, self._switch.deadlines))

    def orchestrator_heard(self) -> None:
        now = boottime()
        self._alone.heard(now)
        self._handle(OrchestratorHeard())

    # ---- for local operators ----

    def overrides(self) -> tuple[Override, ...]:
        """All that operators decided at the site; what was taken back lately, too."""
        return self._machine.overrides()

    def find(self, namespace: str, replica: str) -> Key | None:
        """The replica of that name, if this node has anything to do with it."""
        return find(self._plan, self._supervisor.views(), namespace, replica)

    def check(self, wanted: Override) -> None:
        """Raises Refused if `change` would. Changes nothing."""
        self._deciding.check(wanted)

    async def change(self, wanted: Override) -> Override:
        """As it stands on the disk, with its stamp and what it rests on; it is in force then, and
        peers are told. With the id of a change that was made: that one. Raises Refused."""
        return await self._deciding.change(wanted)

    async def restart(self, key: Key, id: str, why: str, *, dry_run: bool = False) -> None:
        """Exchange what runs of the replica here for the same again, once for each id. Returns when
        it is on its way. Raises Refused."""
        refusal = self._restarts.check(key)
        if not dry_run:
            refusal = await self._restarts.restart(key, id, why)
        if refusal is not None:
            raise Refused(refusal)

    def heard(self) -> dict[str, bool]:
        """Of every peer, whether something came from it just now."""
        return self._machine.heard(boottime())

    def known(self) -> Mapping[Key, Known]:
        """Who has each replica that this node shares, as far as it knows."""
        return self._machine.known(boottime())

    def isolated_s(self) -> float:
        """For how long no orchestrator was heard; 0 while one is."""
        heard = self._around.hears_orchestrator()
        return 0.0 if heard else self._alone.for_s(boottime())

    def autonomy_s(self) -> float:
        """For how long without an orchestrator this node takes replicas over."""
        return self._plan.site.autonomy_s if self._plan is not None else AUTONOMY_S

    def standbys(self) -> list[agent_pb2.StandbyStatus]:
        """Of every role of the plan but mere votes."""
        return self._told

    def shown(self) -> dict[str, Any]:
        """For the status file: `peers` (heard or not) and `standbys` (able or why not, and what
        this node makes of the replica now)."""
        standings = {key: found.value for key, found in self._machine.standings().items()}
        standbys = [
            {
                "replica": one.replica,
                "able": one.able,
                "reason": one.reason,
                "standing": standings.get((one.workload_uid, one.replica), ""),
            }
            for one in self._told
        ]
        return {"peers": self.heard(), "standbys": standbys}

    async def run(self) -> None:
        """Until cancelled. A defect of the machine ends it: what it would decide then is not to be
        trusted, and the agent begins anew from what is saved."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._network.run(self._supervisor.conditions), name="network")
            group.create_task(self._prefetch.run(), name="prefetch")
            group.create_task(self._carry_out(), name="carry-out")
            group.create_task(self._listen_for_orchestrators(), name="orchestrators")
            group.create_task(self._judge_now_and_then(), name="judge")
            group.create_task(self._see_the_runtime(), name="runtime")
            group.create_task(self._mind_the_switch(), name="switch")
            group.create_task(self._deciding.run(), name="decisions")
            group.create_task(self._fail(), name="failure")

    async def stop(self) -> None:
        """Containers run on; what runs by a lease has it renewed for as long as that may take."""
        if self._plan is None or not self._plan.site.peers:
            return
        self._handle(Stopping())
        self._save_alone(every_s=0.0)
        if has_exclusive(self._plan):
            await asyncio.sleep(RENEW_S)
        if self._saves:
            await asyncio.wait(self._saves, timeout=SAVE_S)
        await self._network.close()

    # ---- the machine ----

    def _handle(self, event: Event) -> bool:
        """False: the machine has failed, and hears nothing more."""
        if self._failed.done():
            return False
        now = boottime()
        try:
            for instruction in self._machine.handle(event, now):
                self._do(instruction)
        except Exception as error:
            self._failed.set_exception(error)
            return False
        self._set_timer(now)
        overrides, self._overrides = self._overrides, self._machine.overrides()
        if self._overrides is not overrides:
            self.on_overrides(self._overrides)
        return True

    async def _fail(self) -> None:
        await self._failed

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case Send(node, said):
                self._network.send(node, said)
            case Save():
                self._save(instruction)
            case Arm() | Disarm() | Decide():
                self._acts.append(instruction)
                self._act.set()
            case Answer():
                self._deciding.answered(instruction)
            case Tell():
                self._tell(instruction)
            case Condition(type_, message):
                if message:
                    self._supervisor.conditions.set(type_, type_, message)
                else:
                    self._supervisor.conditions.clear(type_)

    def _set_timer(self, now: float) -> None:
        due = self._machine.next_due()
        if due is not None and self._timer is not None and self._timer_at == due:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - now), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._handle(Tick())

    # ---- what it hears ----

    def _opened(self, node: str, instance: str) -> None:
        self._handle(PeerOpened(node, instance))

    def _closed(self, node: str) -> None:
        self._handle(PeerClosed(node))

    def _said(self, node: str, said: Said) -> None:
        if isinstance(said, Overrides):
            self._deciding.hear(node, said)
            return
        self._handle(PeerSaid(node, said))

    def _look(self) -> None:
        self._looking = False
        supervisor = self._supervisor
        self._handle(RunsHere(tuple(supervisor.views()), supervisor.seen.is_set(), supervisor.now))

    async def _see_the_runtime(self) -> None:
        """What runs is known, even that it is nothing."""
        await self._supervisor.seen.wait()
        self._look()

    async def _listen_for_orchestrators(self) -> None:
        while True:
            if self._around.hears_orchestrator():
                self.orchestrator_heard()
            self._save_alone(save_every_s(self._plan))
            self._publish_standbys()
            await steady_clock.sleep(SIGNS_EVERY_S)

    def _save_alone(self, every_s: float) -> None:
        body = self._alone.to_save(boottime(), time.time(), every_s)
        if body is not None:
            self._save(Save(0, ALONE, body))

    # ---- what it is able to ----

    def _judge_soon(self) -> None:
        if not self._judging:
            self._judging = True
            asyncio.get_running_loop().call_soon(self._judge_all)

    def _judge_all(self) -> None:
        self._judging = False
        plan = self._in_force or self._plan
        if plan is None:
            return
        wall = max(time.time(), plan.issued_at)
        judged = self._judge.judge(plan, self._around.allocatable(), self._prefetch.trouble, wall)
        if self._network.trouble:
            judged = [deaf(one, self._network.trouble) for one in judged]
        self._judged = {one.ability.key: one for one in judged}
        self._handle(AbleTo(tuple(one.ability for one in judged)))
        self._publish_standbys()

    async def _judge_now_and_then(self) -> None:
        """A certification may expire, and with it what a policy admits."""
        while True:
            due_s = self._judge.due_s(time.time())
            await asyncio.sleep(JUDGE_EVERY_S if due_s is None else min(JUDGE_EVERY_S, due_s + 1.0))
            self._judge_soon()

    def _publish_standbys(self) -> None:
        """What the machine adds to what was judged here may change by itself."""
        if self._plan is None:
            return
        told = [self._standby(self._plan, ability) for ability in self._machine.abilities()]
        if told != self._told:
            self._told = told
            if told:
                self._around.publish(told)

    def _standby(self, plan: ParsedPlan, ability: Ability) -> agent_pb2.StandbyStatus:
        judged = self._judged.get(ability.key)
        said_here = judged is not None and judged.ability.reason == ability.reason
        workload_uid, replica = ability.key
        return agent_pb2.StandbyStatus(
            workload_uid=workload_uid,
            namespace=plan.roles[ability.key].assignment.namespace,
            replica=replica,
            able=ability.able,
            reason=ability.reason,
            message=judged.message if judged is not None and said_here else "",
        )

    # ---- what it does ----

    def _save(self, save: Save) -> None:
        task = asyncio.create_task(self._keep(save))
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    async def _keep(self, save: Save) -> None:
        trouble = await self._memory.save(save.name, save.body)
        if save.token:
            self._handle(Saved(save.token, not trouble))

    async def _carry_out(self) -> None:
        while True:
            await self._act.wait()
            self._act.clear()
            while self._acts:
                match self._acts.popleft():
                    case Arm() as arm:
                        await self._arm(arm)
                    case Disarm(uid):
                        await self._switch.disarm(uid)
                    case Decide(stays):
                        self._stays = stays
                        if not any(isinstance(act, Decide) for act in self._acts):
                            self._apply()

    async def _arm(self, arm: Arm) -> None:
        """A later word about the same stay waits already: then only that one is said. Should it
        fail, the supervisor's guard lets nothing start."""
        if any(isinstance(act, Arm) and act.uid == arm.uid for act in self._acts):
            return
        if self._switch.alive and await self._switch.arm(arm.uid, arm.deadline) and arm.tell:
            self._handle(Armed(arm.uid))

    def _apply(self) -> None:
        if self._plan is None:
            return
        effective = overlay(self._plan, self._stays)
        if effective == self._in_force:
            return
        self._in_force = effective
        self._supervisor.submit_plan(effective)
        self._judge_soon()

    async def _mind_the_switch(self) -> None:
        """It costs 5 MB: only where a plan has something exclusive that may run here."""
        await self._exclusive.wait()
        await self._switch.run()

    def _tell(self, tell: Tell) -> None:
        namespace = self._namespace(tell.key)
        if tell.key is None or namespace is None:
            self._supervisor.report(tell.reason, tell.message, warning=tell.warning)
            return
        log.info(tell.reason, extra={"replica": tell.key[1], "detail": tell.message})
        emit = Emit(namespace, tell.key[1], tell.warning, tell.reason, tell.message)
        self._supervisor.on_event(translate.event(emit, self._node, time.time()))

    def _namespace(self, key: Key | None) -> str | None:
        if key is None or self._plan is None:
            return None
        role = self._plan.roles.get(key)
        if role is not None:
            return role.assignment.namespace
        return next((a.namespace for a in self._plan.assignments.values() if a.key == key), None)


def has_exclusive(plan: ParsedPlan) -> bool:
    """Whether anything that needs a lease runs here, or may come to."""
    mine = [*plan.assignments.values(), *(role.assignment for role in plan.roles.values())]
    return any(a.template and a.group is not None and a.group.exclusive for a in mine)
