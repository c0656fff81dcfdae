"""Empirical likelihood for contextual bandits: presets and sections of the report."""

from benchmarks.empirical_likelihood import estimation, intervals, learning, softmax
from benchmarks.empirical_likelihood.report import contest_section, intervals_section
from benchmarks.machinery.papers import Paper, Section
from benchmarks.machinery.report_parts import speed_part

PAPER = Paper(
    name="empirical_likelihood",
    title="Empirical Likelihood for Contextual Bandits (Karampatziakis, Langford and Mineiro, NeurIPS 2020)",
    year=2020,
    presets={
        preset: tuple((study.main, preset) for study in (intervals, estimation, learning, softmax))
        for preset in ("quick", "cpu")
    },
    sections=(
        Section("el_intervals", "Coverage and width of intervals", intervals_section, intervals.claims),
        Section("el_estimation", "Estimating a learned policy's value", contest_section, estimation.claims),
        Section("el_learning", "Learning on the weights of the likelihood", contest_section, learning.claims),
        Section("el_softmax", "The same with this library's learner", contest_section, softmax.claims),
        Section("el_speed", "Speed of empirical likelihood against vw-estimators", speed_part),
    ),
)
