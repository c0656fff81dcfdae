"""STAR and every other estimator on trajectories: figures, suite, coverage, speed."""
