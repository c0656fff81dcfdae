"""Scripts that measure: one a paper table or figure, one for throughput, and the report over their results."""
