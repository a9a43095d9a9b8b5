"""Laws that reach across borders, and whose jurisdiction they belong to.

Called by `evaluate.py`. A law is written COUNTRY-NAME and reaches whoever is under that country's
jurisdiction, also when it is not in this table: a law that is mistyped or new is judged by its
country, never ignored. The table is what help and `edgectl simulate lose law/...` offer.
"""

from collections.abc import Mapping
from types import MappingProxyType

from polder.countries import GROUPS
from polder.sovereignty.ownership import state_of

KNOWN_LAWS: Mapping[str, str] = MappingProxyType(
    {
        "AU-TOLA": "Telecommunications and Other Legislation Amendment Act 2018",
        "CN-CSL": "Cybersecurity Law of 2016",
        "CN-DSL": "Data Security Law of 2021",
        "CN-NIL": "National Intelligence Law of 2017",
        "CN-NSL": "National Security Law of 2015",
        "GB-IPA": "Investigatory Powers Act 2016",
        "IN-TELECOM-ACT": "Telecommunications Act 2023",
        "RU-SORM": "System for operative search measures",
        "RU-YAROVAYA": "Federal laws 374-FZ and 375-FZ of 2016",
        "US-CLOUD-ACT": "Clarifying Lawful Overseas Use of Data Act of 2018",
        "US-EO-12333": "Executive Order 12333",
        "US-FISA-702": "Foreign Intelligence Surveillance Act, section 702",
    }
)


def jurisdiction(law: str) -> str:
    """The country, or group of countries, whose law it is."""
    return law[:2]


def reaches(law: str, country: str) -> bool:
    """Whether a person or company of that country is under the law."""
    whose = law[:2]
    return whose in (country, state_of(country)) or country in GROUPS.get(whose, ())
