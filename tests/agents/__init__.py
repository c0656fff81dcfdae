"""A package, because `test_probes` is also the name of a module of `tests/envs`."""
