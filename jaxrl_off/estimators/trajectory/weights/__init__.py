"""Estimators that weight whole trajectories or steps: importance sampling, and its doubly robust corrections."""
