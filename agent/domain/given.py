"""What a plan brings beside its assignments: Secrets, Configs and facts, looked up by name.

Used by `compose.py` for variables and by `files.py` for files. What a template names and the plan
does not bring is Unresolved: the replica is then not started, and says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.domain.plan import Config, ParsedPlan, Secret


class Unresolved(Exception):
    """The template names something that is not there. `reason` is CamelCase: SecretMissing,
    ConfigMissing, FactMissing, BadFileName, HostPathNotAllowed."""

    def __init__(self, message: str, reason: str = "SecretMissing") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Given:
    """Secrets and Configs by (namespace, name); facts by name, such as `site.country`."""

    secrets: Mapping[tuple[str, str], Secret] = field(default_factory=dict)
    configs: Mapping[tuple[str, str], Config] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def secret(self, namespace: str, name: str) -> Secret:
        """Raises Unresolved."""
        found = self.secrets.get((namespace, name))
        if found is None:
            raise Unresolved(f"there is no secret {name!r} in namespace {namespace!r}")
        return found

    def config(self, namespace: str, name: str) -> Config:
        """Raises Unresolved."""
        found = self.configs.get((namespace, name))
        if found is None:
            text = f"there is no config {name!r} in namespace {namespace!r}"
            raise Unresolved(text, "ConfigMissing")
        return found

    def secret_text(self, namespace: str, name: str, key: str) -> str:
        """One value of a Secret. Raises Unresolved."""
        data = self.secret(namespace, name).data
        if key not in data:
            raise Unresolved(f"secret {name!r} has no key {key!r}")
        try:
            return data[key].decode()
        except UnicodeDecodeError:
            text = f"secret {name!r}, key {key!r}: a variable needs UTF-8 text"
            raise Unresolved(text) from None

    def config_text(self, namespace: str, name: str, key: str) -> str:
        """One value of a Config. Raises Unresolved."""
        data = self.config(namespace, name).data
        if key not in data:
            raise Unresolved(f"config {name!r} has no key {key!r}", "ConfigMissing")
        return data[key]

    def fact(self, name: str) -> str:
        """Raises Unresolved."""
        if name not in self.facts:
            raise Unresolved(f"{name} is not known of this node", "FactMissing")
        return self.facts[name]


NOTHING = Given()


def given_by(plan: ParsedPlan | None) -> Given:
    """What the plan in use brings."""
    return NOTHING if plan is None else Given(plan.secrets, plan.configs, plan.facts)
