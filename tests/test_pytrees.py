"""Static fields and the checks of configurations."""

import flax.struct
import jax
import jax.numpy as jnp
import pytest

from jaxrl_off.pytrees import build, check_choices, check_ranges, nearest, static


@flax.struct.dataclass
class Config:
    name: str = static("adam")
    size: int = static(4)
    rate: float = 0.5


PRESETS = {"small": {"size": 2}, "large": {"size": 8}}


def test_static_fields_are_part_of_the_program():
    assert jax.tree.leaves(Config(rate=2.0)) == [2.0]
    assert jax.tree.structure(Config(size=3)) != jax.tree.structure(Config(size=4))


def test_presets_are_built_with_overrides():
    assert build(Config, PRESETS, "large", {"rate": 1.0}) == Config(size=8, rate=1.0)


def test_unknown_names_are_refused_with_all_names_and_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'smal'; choose one of small, large. Did you mean 'small'"):
        build(Config, PRESETS, "smal", {})
    with pytest.raises(ValueError, match="unknown field sizes; the fields are name, size, rate. Did you mean 'size'"):
        build(Config, PRESETS, "small", {"sizes": 3})
    with pytest.raises(ValueError, match="name='adm' is not known; choose one of adam, sgd. Did you mean 'adam'"):
        check_choices(Config(name="adm"), {"name": ("adam", "sgd")})
    check_choices(Config(), {"name": ("adam", "sgd")})
    assert nearest("zzz", ["adam", "sgd"]) == ""


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_numbers_outside_their_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate=.* is not allowed: rate must be a number in \[0, 1\]"):
        check_ranges(Config(rate=rate), {"rate": (0.0, 1.0)})


def test_numbers_inside_their_range_and_arrays_pass():
    check_ranges(Config(rate=1.0), {"rate": (0.0, 1.0)})
    check_ranges(Config(rate=jnp.full(3, 7.0)), {"rate": (0.0, 1.0)})
