"""Concurrent clients, seeded faults, and a checker of what they saw.

    python -m tests.faults --runs 50 --seed 1 [--json]

`cluster` starts three etcd members and three orchestrators, with proxies between everything;
`injecting` draws and makes the faults of a run, `clients` call through edgectl's own client,
`model` says what a resource does, `checker` whether a history can have happened so. A failure
prints the seed that replays the same draw and writes the history beside it.
"""
