"""Atari games: the Arcade Learning Environment's vector environment, stepped inside the compiled loop.

The emulators live in C++ threads; JAX holds a handle, which the state carries so that calls stay in order. `reset` and
`step` may be jitted and scanned, not vmapped, and a game cannot be checkpointed.

Three things end a trace here, and only one of them is an episode (a whole game):

* the game is over (`terminated`, `episode.done`), or the emulator's frame cap is reached (`truncated`, `episode.done`);
* a life is lost and the game goes on (`terminated`, not `episode.done`), where the protocol has `life_loss`;
* too many decisions without reward (`terminated`, not `episode.done`), where the protocol has a `no_reward_limit`.

The decision after the end of a trace may belong to the emulator instead of the agent: after a game it makes the reset
(the given action is ignored), after a lost life it presses FIRE if the protocol has `fire_reset`. Such a fake
transition has `valid=False`, both ends False and `first=True`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_off.envs.base import DiscreteSpace, Environment, EnvironmentSpec, fresh_timestep
from jaxrl_off.types import Array, EpisodeStatistics, Timestep

PAPER_GAMES: tuple[str, ...] = tuple(
    """air_raid alien amidar assault asterix asteroids atlantis bank_heist battle_zone beam_rider berzerk bowling boxing
    breakout carnival centipede chopper_command crazy_climber demon_attack double_dunk enduro fishing_derby freeway
    frostbite gopher gravitar hero ice_hockey jamesbond journey_escape kangaroo krull kung_fu_master montezuma_revenge
    ms_pacman name_this_game phoenix pitfall pong pooyan private_eye qbert riverraid road_runner robotank seaquest
    skiing solaris space_invaders star_gunner tennis time_pilot tutankham venture video_pinball wizard_of_wor
    yars_revenge
    zaxxon""".split()
)
"""The 58 games of Wang et al. (2019), "Divergence-Augmented Policy Optimization", as ROM names."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a game is presented to the agent. Frames are always grey and the maximum of the last two raw ones.

    Attributes:
        sticky: probability that the emulator repeats the previous action at a raw frame.
        full_actions: all 18 actions instead of the game's minimal set.
        life_loss: whether a lost life ends the trace (`terminated`) although the game goes on.
        reward_clipping: whether the learner sees the sign of the reward. Episode returns are never clipped.
        size: height and width of a frame in pixels (84 in every published protocol; 42 saves most of a CPU's work).
        stack: frames in one observation, the newest last; earlier ones are black after a reset.
        frame_skip: raw frames per decision.
        noop_max: a game starts after uniformly 0 .. noop_max - 1 raw frames without action.
        fire_reset: whether FIRE is pressed where a trace starts (game or life), in games that have this button.
        no_reward_limit: end the trace after more decisions than this without reward; 0 never does.
        max_frames: raw frames after which a game is cut (`truncated`).
    """

    sticky: float = 0.0
    full_actions: bool = False
    life_loss: bool = True
    reward_clipping: bool = True
    size: int = 84
    stack: int = 4
    frame_skip: int = 4
    noop_max: int = 30
    fire_reset: bool = False
    no_reward_limit: int = 0
    max_frames: int = 108_000


PROTOCOLS: dict[str, Protocol] = {
    "nature": Protocol(),
    "machado": Protocol(sticky=0.25, full_actions=True, life_loss=False, noop_max=0),
    "dapo": Protocol(fire_reset=True, no_reward_limit=1000, max_frames=400_000),
}
"""Named protocols.

* `nature`: Mnih et al. (2015), "Human-level control through deep reinforcement learning".
* `machado`: Machado et al. (2018), "Revisiting the Arcade Learning Environment": sticky actions instead of random
  starts, all 18 actions, whole games. Rewards clipped as in their DQN; the cap of 108000 frames is Dopamine's.
* `dapo`: Wang et al. (2019) and their code's `atari_wrappers.py`. Use `stack=1` for the recurrent network. As there,
  ends by `no_reward_limit` press FIRE and leave the game where it is, since their wrapper sits outside the one for
  lives. Different here: no-ops are 0 .. 29 where theirs are 1 .. 30, a lost life costs one emulator decision (FIRE)
  where theirs costs three (no-op, FIRE, the third action), and the frame cap truncates where theirs terminates.
"""


class AtariState(NamedTuple):
    """State of `N` games as far as JAX knows it.

    Attributes:
        handle: `uint8[8]`, address of the emulators.
        lives: `int32[N]`, lives left, as the game counts them (0 in games without lives).
        resetting: `bool[N]`, the next decision is the emulator's reset.
        firing: `bool[N]`, the next decision is the emulator's FIRE.
        quiet: `int32[N]`, decisions without reward since the trace began.
        episode_return: `float32[N]`, unclipped return of the game so far.
        length: `int32[N]`, the agent's decisions in the game so far.
    """

    handle: Array
    lives: Array
    resetting: Array
    firing: Array
    quiet: Array
    episode_return: Array
    length: Array


def _ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
        import ale_py.vector_env
    except ImportError as error:
        raise ImportError(
            'Atari games need ale-py and gymnasium, which are not installed: pip install "jaxrl_off[atari]".'
        ) from error
    return ale_py


def registered() -> list[str]:
    """Names of the games that `make` accepts (ROM names, snake case).

    Raises:
        ImportError: if ale-py is not installed.
    """
    return sorted(_ale().roms.get_all_rom_ids())


def make(
    identifier: str, num_envs: int, *, protocol: str = "nature", num_threads: int | None = None, **overrides: Any
) -> Environment:
    """Build `num_envs` lanes of one Atari game.

    Args:
        identifier: ROM name such as `"breakout"` or `"ms_pacman"`.
        num_envs: number of lanes.
        protocol: a name in `PROTOCOLS`.
        num_threads: emulator threads; by default one a core, at most one a lane.
        **overrides: fields of `Protocol` to replace, for example `stack=1`.

    Returns:
        An `Environment` that is not pure: observations `uint8[N, size, size, stack]`, actions `int32[N]`. `reset(key)`
        seeds every lane from `key`, which determines all that follows; `step` ignores its key. All resets of one
        environment act on the same emulators, so only the newest state may be stepped. Several environments can be used
        side by side.

    Raises:
        ImportError: if ale-py is not installed.
        ValueError: for an unknown game (the message lists close names), protocol or override, or `num_envs` below 1.
    """
    ale_py = _ale()
    _check_game(identifier)
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}.")
    rules = _rules(protocol, overrides)
    vector = ale_py.vector_env.AtariVectorEnv(
        identifier,
        num_envs,
        num_threads=num_threads or min(_cores(), num_envs),
        max_num_frames_per_episode=rules.max_frames,
        repeat_action_probability=rules.sticky,
        full_action_space=rules.full_actions,
        img_height=rules.size,
        img_width=rules.size,
        stack_num=rules.stack,
        frameskip=rules.frame_skip,
        noop_max=rules.noop_max,
        use_fire_reset=rules.fire_reset,
        # The emulator reports whole games and raw rewards; lives and clipping are ours, since its own `life_loss_info`
        # makes a game that is cut in the decision in which a life is lost look like one that goes on.
        life_loss_info=False,
        reward_clipping=False,
    )
    handle, xla_reset, xla_step = vector.xla()
    buttons = list(vector.ale.get_action_set())
    fire = buttons.index(ale_py.Action.FIRE) if rules.fire_reset and ale_py.Action.FIRE in buttons else None
    spec = EnvironmentSpec(
        f"ale/{identifier}", (rules.size, rules.size, rules.stack), "uint8", DiscreteSpace(len(buttons))
    )

    def observe(frames: Array) -> Array:
        return jnp.transpose(frames, (0, 2, 3, 1))

    def reset(key: Array) -> tuple[AtariState, Timestep]:
        seeds = jax.random.randint(key, (num_envs,), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        started, (frames, info) = xla_reset(handle, seeds)
        false, zero = jnp.zeros(num_envs, bool), jnp.zeros(num_envs, jnp.int32)
        state = AtariState(started, info["lives"], false, false, zero, jnp.zeros(num_envs, jnp.float32), zero)
        return state, fresh_timestep(observe(frames), num_envs)

    def step(key: Array, state: AtariState, action: Array) -> tuple[AtariState, Timestep]:
        del key  # the emulators have random numbers of their own, seeded by `reset`
        action = jnp.asarray(action, jnp.int32)
        if fire is not None:
            action = jnp.where(state.firing, fire, action)
        advanced, (frames, raw_reward, game_over, cut, info) = xla_step(state.handle, action)
        observation, raw_reward = observe(frames), raw_reward.astype(jnp.float32)
        valid = ~(state.resetting | state.firing)

        over = game_over | cut
        life_lost = jnp.zeros(num_envs, bool)
        if rules.life_loss:
            life_lost = (info["lives"] < state.lives) & (info["lives"] > 0) & ~game_over & ~state.resetting
        quiet = jnp.where((raw_reward != 0) | ~valid, 0, state.quiet + 1)
        stalled = (quiet > rules.no_reward_limit) & ~over if rules.no_reward_limit else jnp.zeros(num_envs, bool)
        trace_ended = over | life_lost | stalled
        terminated = (game_over | life_lost | stalled) & valid

        episode_return = jnp.where(state.resetting, 0.0, state.episode_return + raw_reward)
        length = jnp.where(state.resetting, 0, state.length + valid)
        next_state = AtariState(
            handle=advanced,
            lives=info["lives"],
            resetting=over,
            firing=trace_ended & ~over if fire is not None else jnp.zeros(num_envs, bool),
            quiet=jnp.where(trace_ended, 0, quiet),
            episode_return=episode_return,
            length=length,
        )
        timestep = Timestep(
            observation=observation,
            reward=jnp.sign(raw_reward) if rules.reward_clipping else raw_reward,
            terminated=terminated,
            truncated=cut & ~terminated & valid,
            final_observation=observation,
            first=trace_ended | ~valid,
            valid=valid,
            episode=EpisodeStatistics(over, episode_return, length),
        )
        return next_state, timestep

    return Environment(spec, num_envs, reset, step, pure=False, close=vector.close)


def _check_game(identifier: str) -> None:
    known = registered()
    if identifier not in known:
        snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in identifier).lstrip("_")
        close = difflib.get_close_matches(snake, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown Atari game {identifier!r}; {hint}{len(known)} games are known by their ROM names in snake case, "
            "such as 'ms_pacman': see jaxrl_off.envs.atari.registered()."
        )


def _rules(protocol: str, overrides: dict[str, Any]) -> Protocol:
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown Atari protocol {protocol!r}; known are: {', '.join(PROTOCOLS)}.")
    fields = [field.name for field in dataclasses.fields(Protocol)]
    unknown = [name for name in overrides if name not in fields]
    if unknown:
        raise ValueError(
            f"Atari games have no parameter {', '.join(unknown)}; the parameters are: {', '.join(fields)}, num_threads."
        )
    return dataclasses.replace(PROTOCOLS[protocol], **overrides)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
