"""The set operators of selectors, for labels of nodes and attributes of devices."""

from polder.manifest.placement import whole_number


def holds(operator: str, values: tuple[str, ...], found: str | None) -> bool:
    """`found` None: there is no such label. Gt and Lt fail on what is no whole number."""
    match operator:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
    number = whole_number(found) if found is not None else None
    limit = whole_number(values[0])
    if number is None or limit is None:
        return False
    return number > limit if operator == "Gt" else number < limit


def phrase(operator: str, values: tuple[str, ...]) -> str:
    """Continues `the workload asks that it`."""
    listed = ", ".join(values[:5]) + (" ..." if len(values) > 5 else "")
    return {
        "In": f"is one of {listed}",
        "NotIn": f"is none of {listed}",
        "Exists": "exists",
        "DoesNotExist": "does not exist",
        "Gt": f"is more than {listed}",
        "Lt": f"is less than {listed}",
    }[operator]
