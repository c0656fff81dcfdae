"""Reproducing papers, and measuring speed: a room for each paper, one for what they share, and one report.

| room | paper |
|---|---|
| `dapo` | Divergence-Augmented Policy Optimization, on MinAtar and Atari |
| `deterministic` | doubly robust values and gradients of deterministic policies |
| `empirical_likelihood` | Empirical Likelihood for Contextual Bandits |
| `nppac` | pathologies of KL-regularised RL from demonstrations, and their cure by a Gaussian process |
| `star` | Abstract Reward Processes, and off-policy evaluation at large |
| `machinery` | what these share |

`python -m benchmarks.reproduce --preset quick|cpu|long|gpu|paper [--paper ROOM]` runs papers and writes `results/report.html`;
`python -m benchmarks.report` rebuilds the page. Each benchmark is also a command of its own, for example
`python -m benchmarks.star.suite --preset cpu --workers 2`. Finished jobs are kept in `results/cache/` and reused.

Speed against other libraries is measured apart, as these are installed into environments of their own on first use (minutes):

| command | peers, and the environment that is made for them |
|---|---|
| `python -m benchmarks.dapo.speed` | rejax in `.venv-peers`; PureJaxRL with `--purejaxrl DIR`, a checkout |
| `python -m benchmarks.nppac.speed` | rejax in `.venv-peers`, sbx in `.venv-sbx` |
| `python -m benchmarks.empirical_likelihood.speed` | vw-estimators in `.venv-bandit` |
| `python -m benchmarks.star.speed` | SCOPE-RL in `.venv-ope` |
| `python -m benchmarks.star.fqe_speed` | d3rlpy in `.venv-d3rlpy` |
| `python -m benchmarks.deterministic.speed` | obp in `.venv-obp` |

`python -m benchmarks.dapo.quality` compares what is learned with shipped settings to rejax (in `.venv-peers`).

All take `--quick` (fewer rounds) and `--output FILE`; `make speed` runs them one after the other.
"""
