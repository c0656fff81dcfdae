"""Marginal (state and action) occupancy ratios: tables, linear features, networks; DICE and minimax weights."""
