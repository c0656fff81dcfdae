"""What estimators fit functions to: steps with their successors, the target's actions, tables, and features."""
