"""What all benchmarks share: jobs with a cache, provenance, statistics, paired timing, parts of the report."""
