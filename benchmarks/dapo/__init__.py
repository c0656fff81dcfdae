"""Divergence-augmented policy optimization: MinAtar, Atari, speed."""
