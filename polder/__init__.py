"""What agent, orchestrator and edgectl must agree on. Pure: no I/O, no clock, no random."""

__version__ = "0.1.0"
