"""Tests on real parts: SQLite, containerd, gRPC."""

import pytest

# Shared suites are not test modules by name; their asserts should explain themselves all the same.
pytest.register_assert_rewrite("tests.integration.store_conformance")
