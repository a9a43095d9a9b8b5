"""`python -m tests.sim NAME ...`: the seeded simulations, by name.

rollouts    what changes what runs: the leader's machines, the plan, a model of agents
scheduler   the plan alone, under random events
agent       the agent's state machine on a runtime that misbehaves
mesh        the leader's view through a mesh that breaks
site        nodes that are alone: who takes over, who holds, what is lost
storm       ten thousand agents and a few members: cold start, lost regions, rolling restart
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    match arguments:
        case ["rollouts", *rest]:
            from tests.sim import rollouts

            return rollouts.main(rest)
        case ["scheduler", *rest]:
            from tests.sim import sim_scheduler

            return sim_scheduler.main(rest)
        case ["agent", *rest]:
            from tests.sim import agent_reconcile

            return agent_reconcile.main(rest)
        case ["mesh", *rest]:
            from tests.sim import mesh

            return mesh.main(rest)
        case ["site", *rest]:
            from tests.sim import site

            return site.main(rest)
        case ["storm", *rest]:
            from tests.sim import storm

            return storm.main(rest)
        case ["-h" | "--help"]:
            print(__doc__)
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
