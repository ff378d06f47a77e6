"""Faults without end against the real daemon and a real broker; see ``python -m tests.chaos --help``."""
