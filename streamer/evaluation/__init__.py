"""Offline evaluation: what would have been found, had the index answered past requests."""
