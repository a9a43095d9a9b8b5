"""Names of the metadata that operators' calls carry beside their messages.

Sent by edgectl (a request's id) and by the orchestrator's front door (who answered, how old it is).
"""

MEMBER_KEY = "polder-member"
"""On every answer to an operator: the member that gave it. Trailing; of a stream: initial."""

AGE_KEY = "polder-age-ms"
"""Only on an answer that may be old: how long ago it was last known to be current."""

REQUEST_KEY = "polder-request"
"""An id that the client chose for a call that writes; the same in every try of it."""

REPEATED_KEY = "polder-repeated"
"""`1` on every try after the first: what came of an earlier one is not known."""
