"""N-PPAC: presets and sections of the report."""

from benchmarks.machinery.papers import Paper, Section
from benchmarks.machinery.report_parts import speed_part
from benchmarks.nppac import adroit, locomotion, pathology
from benchmarks.nppac.claims import claims, pathology_claims
from benchmarks.nppac.report import learning_section, pathology_section

PAPER = Paper(
    name="nppac",
    title="On Pathologies in KL-Regularized Reinforcement Learning from Expert Demonstrations (Rudner et al., NeurIPS 2021)",
    year=2021,
    presets={
        "quick": ((pathology.main, "quick"), (locomotion.main, "quick"), (adroit.main, "quick")),
        "cpu": ((pathology.main, "cpu"), (locomotion.main, "cpu"), (adroit.main, "cpu")),
        "long": ((locomotion.main, "long"), (adroit.main, "long")),
        # larger sizes would add nothing to the pathology
        "gpu": ((pathology.main, "cpu"), (locomotion.main, "gpu"), (adroit.main, "gpu")),
    },
    sections=(
        Section("nppac_pathology", "The pathology taken apart", pathology_section, pathology_claims),
        Section("nppac_adroit", "The Adroit hand with a reward of 0 or 1", learning_section, claims),
        Section("nppac_locomotion", "Locomotion", learning_section, claims),
        Section("throughput_kl", "Speed of SAC and N-PPAC against sbx and rejax", speed_part),
    ),
)
