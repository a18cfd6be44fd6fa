"""For every test."""

import pytest

from runlog import terminal


@pytest.fixture(autouse=True)
def warnings_anew(monkeypatch):
    """What is said once in a process is said once in a test."""
    monkeypatch.setattr(terminal, "_warned", set())
