"""Replay and, later, readers and writers of logged data."""
