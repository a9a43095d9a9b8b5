"""`edgectl --site-endpoint`: asking the nodes of a site themselves, without any orchestrator.

`client` is what the verbs talk to instead of `edgectl.client`: it has the same reads, composed
(`composing`, `happenings`) from the `picture` that all nodes of the site gave together, and the
changes that a site knows. `survey` finds the nodes and asks them all at once; `link` is the
connection to one, whose identity `access` checks before anything is said to it. `presenting` makes
the tables.
"""
