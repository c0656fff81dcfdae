"""Doubly robust values and gradients of deterministic policies: presets and sections of the report."""

from benchmarks.deterministic import study
from benchmarks.deterministic.report import claims, deterministic_section
from benchmarks.machinery.papers import Paper, Section
from benchmarks.machinery.report_parts import speed_part

PAPER = Paper(
    name="deterministic",
    title="Doubly Robust Off-Policy Value and Gradient Estimation for Deterministic Policies (Kallus and Uehara, NeurIPS 2020)",
    year=2020,
    presets={preset: ((study.main, preset),) for preset in ("quick", "cpu")},
    sections=(
        Section("deterministic_dr", "Rates, robustness, learning, control", deterministic_section, claims),
        Section("deterministic_speed", "Speed of kernelised estimators against obp", speed_part),
    ),
)
