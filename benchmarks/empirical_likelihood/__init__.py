"""Empirical likelihood for contextual bandits: intervals, estimation, learning, speed."""
