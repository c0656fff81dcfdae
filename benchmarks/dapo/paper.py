"""Divergence-augmented policy optimization: presets and sections of the report."""

from benchmarks.dapo import atari, minatar
from benchmarks.dapo.claims import claims
from benchmarks.dapo.report import atari_section, minatar_section
from benchmarks.machinery.papers import Paper, Section
from benchmarks.machinery.report_parts import speed_part

PAPER = Paper(
    name="dapo",
    title="Divergence-Augmented Policy Optimization (Wang, Li, Xiong and Zhang, NeurIPS 2019)",
    year=2019,
    presets={
        "quick": ((minatar.main, "quick"),),
        "cpu": ((minatar.main, "cpu"),),
        "long": ((minatar.main, "long"),),
        "gpu": ((minatar.main, "gpu"), (atari.main, "gpu")),
        "paper": ((minatar.main, "paper"), (atari.main, "paper")),
    },
    sections=(
        Section("dapo_minatar", "MinAtar: does the divergence pay, and where?", minatar_section, claims),
        Section("dapo_atari", "Atari", atari_section),
        Section("quality", "What PPO learns with shipped settings, beside rejax", speed_part),
        Section("throughput", "Speed of PPO against rejax and PureJaxRL", speed_part),
    ),
)
