"""The options of every verb, as tables. Called by `edgectl.cli`; imports argparse alone.

A new verb is a `Verb` row in one of these modules and a function in `edgectl.verbs`.
"""

from edgectl.options.agents import AGENTS
from edgectl.options.changing import CHANGING
from edgectl.options.client import CLIENT
from edgectl.options.guards import GUARDS
from edgectl.options.nodes import NODES
from edgectl.options.reading import READING
from edgectl.options.regions import REGIONS
from edgectl.options.rollouts import ROLLOUTS
from edgectl.options.site import SITE

VERBS = (*CHANGING, *ROLLOUTS, *READING, *NODES, *GUARDS, *REGIONS, *AGENTS, *SITE, *CLIENT)
