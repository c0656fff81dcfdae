"""STAR, and off-policy evaluation from trajectories at large: presets and sections of the report."""

from benchmarks.machinery.papers import Paper, Section
from benchmarks.machinery.report_parts import speed_part
from benchmarks.star import coverage, figure3, suite
from benchmarks.star.report import coverage_section, figure3_section, suite_section

PAPER = Paper(
    name="star",
    title="Abstract Reward Processes: Leveraging State Abstraction for Consistent Off-Policy Evaluation (STAR, NeurIPS 2024)",
    year=2024,
    presets={
        preset: tuple((study.main, preset) for study in (figure3, suite, coverage)) for preset in ("quick", "cpu")
    },
    sections=(
        Section("star_ope", "The twelve cases of Figure 3", figure3_section, figure3.claims),
        Section("ope_coverage", "Coverage of intervals", coverage_section, coverage.claims),
        Section("ope_suite", "Every estimator on every domain", suite_section, suite.claims),
        Section("ope_speed", "Speed of off-policy evaluation against SCOPE-RL", speed_part),
        Section("fqe_speed", "Speed of fitted Q-evaluation against d3rlpy", speed_part),
    ),
)
