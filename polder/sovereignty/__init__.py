"""Sovereignty: whether a policy admits a site, judged on declared facts and closed on unknowns.

Used at apply, in scheduling, and by the agent against the facts in its signed plan. Pure: the time
is an argument. `analyse_provider` once per version of a Provider, `evaluate` for every question.
"""

from polder.sovereignty.evaluate import evaluate, next_change
from polder.sovereignty.floor import loosens, tighten
from polder.sovereignty.laws import KNOWN_LAWS
from polder.sovereignty.profile import (
    ProviderProfile,
    SiteFacts,
    analyse_provider,
    facts_from_json,
    facts_json,
    policy_from_json,
    policy_json,
    site_facts,
)
from polder.sovereignty.reason import Change, Reason, single_change

__all__ = [
    "KNOWN_LAWS",
    "Change",
    "ProviderProfile",
    "Reason",
    "SiteFacts",
    "analyse_provider",
    "evaluate",
    "facts_from_json",
    "facts_json",
    "loosens",
    "next_change",
    "policy_from_json",
    "policy_json",
    "single_change",
    "site_facts",
    "tighten",
]
