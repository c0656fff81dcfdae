"""Judging policies with data that other policies generated."""
