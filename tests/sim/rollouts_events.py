"""What happens in a simulated life: operators who change their minds, boxes that fail.

Used by `rollouts.py`. Every choice is drawn from the world's dice, so that a seed replays.
"""

import copy
from collections.abc import Callable
from typing import Any

from orchestrator.records import StoredResource
from orchestrator.store import keys
from polder.manifest.quantity import format_timestamp
from tests.sim.rollouts_agents import Agent, Image
from tests.sim.rollouts_world import World

DAY_S = 86_400.0
BAD = ("never_ready", "crash_start", "crash_late", "pull_fails", "refused")


class Events:
    """`begin` makes the world; `happen` lets one thing happen to it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._images = 0
        self._named = 0
        self._table: list[tuple[int, Callable[[], object]]] = [
            (10, self.edit),
            (3, self.edit_often),
            (5, self.scale),
            (3, self.scale_to_zero_and_back),
            (4, self.undo),
            (2, self.restart),
            (4, self.pause_or_resume),
            (2, self.change_rules),
            (4, self.drain),
            (3, self.undrain),
            (3, self.cordon),
            (2, self.maintenance),
            (2, self.delete_workload),
            (3, self.new_workload),
            (1, self.delete_node),
            (1, self.new_node),
            (6, self.crash),
            (2, self.crash_many),
            (7, self.silence_node),
            (2, self.silence_site),
            (1, self.silence_all),
            (3, self.power_cut),
            (3, self.new_leader),
            (4, self.stale_commits),
            (2, self.collect),
            (2, self.freeze_or_thaw),
            (3, self.jump),
        ]

    # --- the beginning ---------------------------------------------------------------------------

    def begin(self) -> None:
        world, dice = self._world, self._world.dice
        world.operator.apply(
            "Provider", "", "telco", {"legalName": "Telco N.V.", "seatCountry": "NL"}
        )
        sites = [f"s{n}" for n in range(dice.randint(2, 5))]
        for site in sites:
            region = dice.choice(["north", "south"])
            world.operator.apply(
                "Site", "", site, {"provider": "telco", "country": "NL", "region": region}
            )
        for _ in range(dice.randint(3, 12)):
            self.new_node()
        for _ in range(dice.randint(1, 4)):
            self.new_workload()
        if dice.random() < 0.3:
            self._table += [(4, self.new_job), (2, self.new_schedule)]

    def happen(self) -> None:
        weights = [weight for weight, _ in self._table]
        action = self._world.dice.choices([a for _, a in self._table], weights)[0]
        what = action()
        if what is not None:
            self._world.note(f"EVENT {action.__name__}: {what}")

    # --- choices ---------------------------------------------------------------------------------

    def _workload(self) -> StoredResource | None:
        found = [
            w
            for w in self._world.mirror.resources("Workload")
            if not w.deletion_requested_at_ms and w.spec.get("run") != "once"
        ]
        return self._world.dice.choice(found) if found else None

    def _agent(self) -> Agent | None:
        found = sorted(self._world.agents)
        return self._world.agents[self._world.dice.choice(found)] if found else None

    def _image(self, share_bad: float) -> str:
        dice = self._world.dice
        self._images += 1
        kind = dice.choice(BAD) if dice.random() < share_bad else "good"
        name = f"img:{self._images}-{kind.replace('_', '-')}"
        image = Image(name, kind, dice.uniform(0.1, 8.0), dice.uniform(0.2, 10.0))
        self._world.images[name] = image
        return name

    def _template(self, share_bad: float) -> dict[str, Any]:
        dice = self._world.dice
        cpu = dice.choice(["100m", "100m", "200m", "1500m"])
        container = {"name": "c", "image": self._image(share_bad), "resources": {"cpu": cpu}}
        template: dict[str, Any] = {"containers": [container]}
        if dice.random() < 0.3:
            template["stopDelay"] = "2s"
        return template

    def _update(self) -> dict[str, Any]:
        dice = self._world.dice
        unavailable = dice.choice(["1", "1", "0", "2", "25%", "50%"])
        surge = dice.choice(["1", "1", "2", "25%"] + (["0"] if unavailable != "0" else []))
        update: dict[str, Any] = {
            "maxUnavailable": unavailable,
            "maxSurge": surge,
            "minReady": dice.choice(["0s", "0s", "5s"]),
            "progressDeadline": dice.choice(["60s", "120s"]),
            "provenAfter": dice.choice(["20s", "60s", "400s"]),
            "autoRollback": dice.random() < 0.85,
        }
        if dice.random() < 0.4:
            soak = dice.choice(["10s", "40s"])
            update["canary"] = {"sites": dice.choice([1, 1, 2]), "soak": soak}
        return update

    # --- operators -------------------------------------------------------------------------------

    def new_workload(self) -> str:
        dice = self._world.dice
        self._named += 1
        name = f"w{self._named}"
        spec: dict[str, Any] = {"template": self._template(0.08), "update": self._update()}
        match dice.randrange(10):
            case 0:
                spec["perSite"] = 1
            case 1:
                spec["perNode"] = 1
            case _:
                spec["replicas"] = dice.choice([1, 2, 3, 3, 4, 5, 6, 12])
        if dice.random() < 0.2:
            spec["disruption"] = {"maxUnavailable": dice.choice(["0", "1", "2"])}
        if dice.random() < 0.2:
            spec["priority"] = dice.choice([-5, 5])
        if self._world.exclusive and "perNode" not in spec:
            spec["failover"] = self._failover()
        namespace = dice.choice(["default", "default", "b"])
        self._world.operator.apply("Workload", namespace, name, spec)
        return f"{name}: {spec}"

    def _failover(self) -> dict[str, Any]:
        dice = self._world.dice
        found: dict[str, Any] = {"exclusive": True, "standbys": dice.choice([0, 1, 1, 2])}
        if dice.random() < 0.4:
            found |= {"whenIsolated": "stop", "stopAfter": dice.choice(["30s", "60s"])}
        return found

    def _job(self) -> dict[str, Any]:
        dice = self._world.dice
        self._images += 1
        kind = dice.choice(["good", "good", "job_flaky", "job_fails", "pull_fails"])
        name = f"job:{self._images}-{kind.replace('_', '-')}"
        self._world.images[name] = Image(name, kind, dice.uniform(0.1, 5.0), 0.5)
        container = {"name": "c", "image": name, "resources": {"cpu": "100m"}}
        completions = dice.randint(1, 8)
        return {
            "run": "once",
            "template": {"containers": [container]},
            "job": {
                "completions": completions,
                "parallelism": dice.randint(1, completions),
                "retries": dice.choice([0, 2, 5]),
                "deadline": "600s",
            },
        }

    def new_job(self) -> str:
        self._named += 1
        name, spec = f"job{self._named}", self._job()
        self._world.operator.apply("Workload", "default", name, spec)
        return f"{name}: {spec}"

    def new_schedule(self) -> str:
        self._named += 1
        dice = self._world.dice
        schedule = {
            "cron": dice.choice(["* * * * *", "*/2 * * * *", "0 0 31 2 *"]),
            "concurrency": dice.choice(["Forbid", "Replace", "Allow"]),
            "missed": dice.choice(["Skip", "RunOnce"]),
        }
        name, spec = f"cron{self._named}", {**self._job(), "schedule": schedule}
        self._world.operator.apply("Workload", "default", name, spec)
        return f"{name}: {spec}"

    def _changed(self, workload: StoredResource, **fields: Any) -> None:
        self._world.operator.change("Workload", workload.namespace, workload.name, **fields)

    def edit(self) -> str | None:
        workload = self._workload()
        if workload is None:
            return None
        template = copy.deepcopy(workload.spec["template"])
        template["containers"][0]["image"] = self._image(0.35)
        if self._world.dice.random() < 0.1:
            template["containers"][0]["resources"] = {"cpu": "300m"}
        self._changed(workload, template=template)
        return f"{workload.name} {template['containers'][0]['image']}"

    def edit_often(self) -> str | None:
        """Up to ten edits, some of them in mid-rollout."""
        workload = self._workload()
        if workload is None:
            return None
        count = self._world.dice.randint(2, 10)

        def again(left: int) -> None:
            found = self._world.mirror.resource("Workload", workload.namespace, workload.name)
            if left and found is not None and found.uid == workload.uid:
                template = copy.deepcopy(found.spec["template"])
                template["containers"][0]["image"] = self._image(0.3)
                self._changed(found, template=template)
                self._world.note(f"  edited again: {template['containers'][0]['image']}")
                self._world.later(self._world.dice.choice([0.1, 1, 5]), lambda: again(left - 1))

        again(count)
        return f"{workload.name} {count} times"

    def scale(self) -> str | None:
        workload = self._workload()
        if workload is None or "replicas" not in workload.spec:
            return None
        count = self._world.dice.randint(0, 6)
        self._changed(workload, replicas=count)
        return f"{workload.name} to {count}"

    def scale_to_zero_and_back(self) -> str | None:
        workload = self._workload()
        if workload is None or "replicas" not in workload.spec:
            return None
        before = workload.spec["replicas"]
        self._changed(workload, replicas=0)
        delay = self._world.dice.choice([0.1, 1, 10, 60])
        self._world.later(delay, lambda: self._changed(workload, replicas=before))
        return f"{workload.name} to 0, and after {delay} s to {before}"

    def undo(self) -> str | None:
        """An older template again; as the API does it, as a new revision."""
        workload = self._workload()
        if workload is None or workload.template_revision < 2:
            return None
        number = self._world.dice.randint(1, workload.template_revision - 1)
        older = self._world.mirror.revision_of(workload.uid, number)
        if older is None:
            return None
        self._changed(workload, template=copy.deepcopy(older.template))
        return f"{workload.name} to revision {number}"

    def restart(self) -> str | None:
        workload = self._workload()
        if workload is None:
            return None
        template = {**workload.spec["template"], "restartedAt": str(self._world.steady)}
        self._changed(workload, template=template)
        return workload.name

    def pause_or_resume(self) -> str | None:
        workload = self._workload()
        if workload is None:
            return None
        update = dict(workload.spec["update"])
        update["paused"] = not update.get("paused", False)
        self._changed(workload, update=update)
        return f"{workload.name} paused: {update['paused']}"

    def change_rules(self) -> str | None:
        workload = self._workload()
        if workload is None:
            return None
        self._changed(workload, update=self._update())
        return workload.name

    def delete_workload(self) -> str | None:
        workload = self._workload()
        if workload is None:
            return None
        self._world.operator.delete("Workload", workload.namespace, workload.name)
        return workload.name

    def freeze_or_thaw(self) -> str | None:
        namespace = self._world.dice.choice(["", "default", "b"])
        if self._world.mirror.kept_at(keys.freeze(namespace)) is not None:
            self._world.thaw(namespace)
            return f"thaw {namespace!r}"
        self._world.freeze(namespace)
        self._world.later(self._world.dice.uniform(10, 90), lambda: self._world.thaw(namespace))
        return f"freeze {namespace!r}"

    # --- maintenance -----------------------------------------------------------------------------

    def drain(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        fields: dict[str, Any] = {"draining": True, "unschedulable": True}
        if self._world.dice.random() < 0.3:
            fields["drainDeadline"] = format_timestamp(self._world.wall + 60.0)
        self._world.operator.change("Node", "", agent.name, **fields)
        return f"{agent.name} {fields}"

    def undrain(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        self._world.operator.change(
            "Node", "", agent.name, draining=None, unschedulable=None, drainDeadline=None
        )
        return agent.name

    def cordon(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        kind, name = self._world.dice.choice(
            [("Node", agent.name), ("Site", agent.site), ("Provider", "telco")]
        )
        record = self._world.mirror.resource(kind, "", name)
        assert record is not None
        switched = not record.spec.get("unschedulable", False)
        self._world.operator.change(kind, "", name, unschedulable=switched or None)
        if kind == "Provider" and switched:
            self._world.later(
                30.0, lambda: self._world.operator.change(kind, "", name, unschedulable=None)
            )
        return f"{kind}/{name} {switched}"

    def maintenance(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        start = self._world.wall + self._world.dice.uniform(-5, 30)
        window = {
            "start": format_timestamp(start),
            "end": format_timestamp(start + self._world.dice.choice([20.0, 120.0])),
            "drain": self._world.dice.random() < 0.5,
        }
        self._world.operator.change("Site", "", agent.site, maintenance=[window])
        return f"{agent.site} {window}"

    def new_node(self) -> str:
        sites = sorted(r.name for r in self._world.mirror.resources("Site"))
        site = self._world.dice.choice(sites)
        self._named += 1
        name = f"n{self._named}"
        self._world.add_node(name, site)
        return f"{name} at {site}"

    def delete_node(self) -> str | None:
        agent = self._agent()
        if agent is None or len(self._world.agents) < 4:
            return None
        self._world.operator.delete("Node", "", agent.name)
        return agent.name

    # --- faults ----------------------------------------------------------------------------------

    def crash(self) -> str | None:
        agent = self._agent()
        if agent is None or not agent.recs:
            return None
        uid = self._world.dice.choice(sorted(agent.recs))
        name = agent.recs[uid].replica
        agent.crash(agent.recs[uid])
        return f"{name} on {agent.name}"

    def crash_many(self) -> str:
        count = 0
        for agent in list(self._world.agents.values()):
            for rec in list(agent.recs.values()):
                if self._world.dice.random() < 0.3:
                    agent.crash(rec)
                    count += 1
        return f"{count} containers"

    def _silence(self, agents: list[Agent]) -> str:
        length = self._world.dice.choice([6.0, 15.0, 35.0, 50.0, 150.0])
        for agent in agents:
            agent.silence()
            self._world.later(length + self._world.dice.uniform(0, 3), agent.connect)
        return f"{[a.name for a in agents]} for {length:.0f} s"

    def silence_node(self) -> str | None:
        agent = self._agent()
        return self._silence([agent]) if agent is not None else None

    def silence_site(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        return self._silence([a for a in self._world.agents.values() if a.site == agent.site])

    def silence_all(self) -> str:
        return self._silence(list(self._world.agents.values()))

    def power_cut(self) -> str | None:
        agent = self._agent()
        if agent is None or not agent.powered:
            return None
        agent.power_off()
        length = self._world.dice.choice([10.0, 60.0, 200.0, 1e9])
        if length < 1e9:
            self._world.later(length, agent.power_on)
            self._world.later(length + 2.0, agent.connect)
        return f"{agent.name} for {length:.0f} s"

    def new_leader(self) -> str:
        self._world.lead()
        return "nothing is remembered"

    def stale_commits(self) -> str:
        self._world.refuse_next(self._world.dice.choice([0.3, 1.0]))
        return "for a second"

    def collect(self) -> str:
        return f"{self._world.collect()} template revisions"

    def jump(self) -> str:
        jump = self._world.dice.choice([DAY_S, -DAY_S, 3600.0, -20.0])
        self._world.jump(jump)
        return f"{jump:.0f} s"
