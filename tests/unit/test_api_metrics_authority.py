"""The end of the CA's own certificates is a number that an alert can be set on."""

from prometheus_client import generate_latest

from orchestrator.metrics import Metrics


def test_the_ends_of_the_ca_are_exported() -> None:
    metrics = Metrics("0.1.0", "m1", "eu-west")
    metrics.authority_ends({"root_ca": 2_000_000_000.0, "region_ca": 1_900_000_000.0})
    text = generate_latest(metrics.registry).decode()
    assert 'polder_certificate_expiry_timestamp_seconds{what="region_ca"} 1.9e+09' in text
    assert 'polder_certificate_expiry_timestamp_seconds{what="root_ca"} 2e+09' in text
