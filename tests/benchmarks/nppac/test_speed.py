"""What the speed benchmarks compute, with workers that answer from a table."""

import pytest

from benchmarks.machinery import turns
from benchmarks.nppac import speed as throughput_kl
from benchmarks.nppac.sac_worker import ACTIONS, BATCH, CRITICS, OBSERVATIONS, WIDTHS


class Answers:
    """A worker whose runs take as long as they are told to."""

    def __init__(self, library, seconds):
        self.library = library
        self.seconds = iter(seconds)
        self.asked = []

    def ask(self, what, task, seed=None):
        self.asked.append((what, task, seed))
        seconds = next(self.seconds)
        return {"seconds": seconds, "cpu_seconds": 2 * seconds}


def test_rounds_take_turns_and_leave_out_the_first_run_and_compilation():
    # answers in order: compile, compile, one run to warm up, two timed runs
    ours, peer = Answers("ours", [9, 1, 9, 2, 4]), Answers("peer", [9, 3, 9, 6, 4])
    record = turns.take_turns([(ours, "work"), (peer, "work")], 2, compilations=1)
    assert turns.times(record, "ours work") == [2, 4]
    assert turns.times(record, "peer work") == [6, 4]
    assert turns.times(record, "ours work", "compilations") == [1]
    assert [what for what, _, _ in ours.asked] == ["compile", "compile", "run", "run", "run"]
    assert [seed for _, _, seed in ours.asked][-2:] == [0, 1]
    label, mine, theirs, ratios, bar = throughput_kl.versus(record, "steps/s", 12, "ours work", "peer work", "1.0")
    # medians of 3 and 5 seconds; ratios of a round are 3 and 1
    assert (label, mine, theirs, bar) == ("steps/s", "4", "2", "1.0")
    assert ratios.startswith("2.00")
    assert "1.00" in ratios
    assert "3.00" in ratios


def test_operations_of_an_update_are_those_of_its_matrix_products():
    """Counted one product at a time: forward passes, then two products a layer backwards but for what has no use."""
    policy = [(OBSERVATIONS, WIDTHS[0]), (WIDTHS[0], WIDTHS[1]), (WIDTHS[1], 2 * ACTIONS)]
    critic = [(OBSERVATIONS + ACTIONS, WIDTHS[0]), (WIDTHS[0], WIDTHS[1]), (WIDTHS[1], 1)]

    def forward(layers):
        return sum(2 * BATCH * a * b for a, b in layers)

    total = 2 * forward(policy) + 3 * CRITICS * forward(critic)
    # weights of every layer, and inputs of all but the first
    total += forward(policy) + forward(policy[1:]) + CRITICS * (forward(critic) + forward(critic[1:]))
    # through the critics to the action alone
    total += CRITICS * (forward(critic[1:]) + forward([(ACTIONS, WIDTHS[0])]))
    assert throughput_kl.flops_per_update() == total


@pytest.mark.parametrize(
    ("scores", "verdict"), [([-150.0, -160.0], "all runs above"), ([-150.0, -1e3], "not all runs above")]
)
def test_a_training_that_fails_is_not_hidden(scores, verdict):
    runs = [{"seconds": 2.0, "cpu_seconds": 2.0}] * 2
    record = {
        "ours training": {"runs": runs, "scores": scores},
        "rejax training": {"runs": runs, "scores": [-150.0, -151.0]},
    }
    assert throughput_kl.training_rows(record)[1][3].startswith(verdict)
