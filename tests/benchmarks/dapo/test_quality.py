"""The table that sets what is learned with shipped settings beside rejax."""

from benchmarks.dapo import quality


def test_the_difference_is_to_the_better_setting_of_the_peer():
    scores = {"ours": [10.0, 12.0], "rejax": [1.0, 3.0], "rejax_normalised": [11.0, 11.0]}
    task = {"task": "CartPole-v1", "steps": 2000, "libraries": {name: {"scores": s} for name, s in scores.items()}}
    row = quality.rows_of([task])[0]
    assert row[:3] == ["CartPole-v1", "2,000", "11.0 (standard error 1.0)"]
    assert row[3:] == ["2.0 (standard error 1.0)", "11.0 (standard error 0.0)", "0.0 (-1.0 to 1.0)"]
    assert len(row) == len(quality.HEADER)


def test_interval_of_the_difference():
    assert quality.interval([5.0] * 4, [3.0] * 4) == (2.0, 2.0)
    low, high = quality.interval([0.0, 1.0] * 50, [0.0, 1.0] * 50)
    assert abs(low + high) < 0.02
    assert 0.12 < high < 0.16  # 1.96 x sqrt(2 / 400)
