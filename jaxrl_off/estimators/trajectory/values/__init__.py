"""Action values of the target policy, fitted to data: tables, linear features, traces, networks, models."""
