"""Stepping Python simulators on the host, by this process alone or by several that share memory.

A lane is one `gymnasium.Env`. `Lanes` deals its lanes to `W` processes, of which the first is this one, and each loops
over its share. Observations, actions, rewards and ends never pass through a pipe: they lie in memory that all processes
map, and a step costs one byte to and one byte from every other process. The numbers do not depend on `W`, but for
subnormals (below 1e-37), which the threads of JAX that step the lanes of this process flush to zero.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

_RESET, _STEP, _CLOSE, _DONE = b"r", b"s", b"c", b"."
_PATIENCE = 5.0  # seconds that a process has to end by itself

Fields = dict[str, tuple[tuple[int, ...], np.dtype]]


class Layout(NamedTuple):
    """Shapes and dtypes of one lane's observation and action."""

    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_shape: tuple[int, ...]
    action_dtype: str


class Stepped(NamedTuple):
    """What a step of `N` lanes gave; the arrays are the caller's own.

    Attributes:
        observation: `[N, ...]`, to act on next; after the end of an episode that of the next one.
        reward: `float32[N]`.
        terminated: `bool[N]`.
        truncated: `bool[N]`, False where `terminated`.
        final_observation: `[N, ...]`, the successor observation, before any reset.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final_observation: np.ndarray


class Lanes:
    """`N` lanes, dealt to `workers` processes in contiguous shares that differ by one lane at most.

    Processes are spawned, not forked (JAX has threads), so a script with more than one worker must start its work under
    `if __name__ == "__main__":`. They end with `close` and with this process, however it ends.

    Args:
        build: returns a new `gymnasium.Env` at each call; sent to other processes by cloudpickle.
        num_envs: number of lanes `N`, at least 1.
        layout: of one lane.
        workers: number of processes, this one included, `1 .. num_envs`.
        name: of the environment, for messages.

    Raises:
        RuntimeError: if a process cannot build its lanes. Later, `reset` and `step` raise it if another process fails or
            dies; all others are then closed.
    """

    def __init__(self, build: Callable[[], Any], num_envs: int, layout: Layout, workers: int, name: str) -> None:
        self._name, self._closed = name, False
        self._connections: list[Any] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        fields = _fields(layout, num_envs)
        if workers == 1:
            shared = {field: bytearray(_size(*form)) for field, form in fields.items()}
        else:
            shared = {field: context.RawArray("b", _size(*form)) for field, form in fields.items()}
        self._arrays = _view(shared, fields)
        self._shares = [range(part[0], part[-1] + 1) for part in np.array_split(np.arange(num_envs), workers)]
        for share in self._shares[1:]:
            from gymnasium.vector.utils import CloudpickleWrapper

            here, there = context.Pipe()
            arguments = (CloudpickleWrapper(build), shared, fields, share, there)
            process = context.Process(target=_serve, args=arguments, name=f"{name} {share}", daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            self._connections.append(here)
            self._processes.append(process)
        try:
            self._loop = _Loop(build, self._arrays, self._shares[0])
        except BaseException:
            self._close_others()
            raise
        self._wait("start")

    def reset(self, seed: np.ndarray) -> np.ndarray:
        """Start every lane with its own seed, `int[N]`; returns the observations `[N, ...]`."""
        self._arrays["seed"][:] = seed
        self._all(_RESET, self._loop.reset)
        return self._arrays["observation"].copy()

    def step(self, action: np.ndarray) -> Stepped:
        """Advance every lane by its action, `[N, ...]`, and reset those whose episode ended."""
        self._arrays["action"][:] = action
        self._all(_STEP, self._loop.step)
        return Stepped(*(self._arrays[field].copy() for field in Stepped._fields))

    def close(self) -> None:
        """Release the simulators and end the other processes; may be called more than once."""
        if not self._closed:
            self._loop.close()
        self._close_others()

    def _all(self, command: bytes, work: Callable[[], None]) -> None:
        """Everybody's share of a step at the same time."""
        if self._closed:
            raise RuntimeError(f"the lanes of {self._name} are closed; build the environment again to go on.")
        for connection in self._connections:
            try:
                connection.send_bytes(command)
            except OSError:
                pass  # it has ended; `_wait` says so
        try:
            work()
        except BaseException:
            self._close_others()  # their answers to this command would be taken for answers to the next
            raise
        self._wait("reset" if command == _RESET else "step")

    def _wait(self, doing: str) -> None:
        for number, connection in enumerate(self._connections):
            try:
                reply = connection.recv_bytes()
            except (EOFError, OSError):
                self._fail(number, doing, None)
            if reply != _DONE:
                self._fail(number, doing, reply.decode())

    def _fail(self, number: int, doing: str, report: str | None) -> NoReturn:
        process, share = self._processes[number], self._shares[number + 1]
        who = f"worker {number + 2} of {len(self._shares)} of {self._name} (lanes {share[0]} to {share[-1]})"
        if report is None:
            process.join(_PATIENCE)
            why = (
                f"died during {doing} with exit code {process.exitcode} (a negative one is the signal that killed it)."
            )
            if doing == "start":
                why += ' A script that uses workers must start its work under `if __name__ == "__main__":`.'
        else:
            why = f"failed during {doing}:\n{report}"
        self._close_others()
        raise RuntimeError(f"{who} {why}\nAll workers have been closed; build the environment again to go on.")

    def _close_others(self) -> None:
        self._closed = True
        for connection in self._connections:
            try:
                connection.send_bytes(_CLOSE)
            except OSError:
                pass  # it has ended already
            connection.close()
        self._connections = []
        for process in self._processes:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


class _Loop:
    """The lanes `share` of `arrays`, stepped one after the other."""

    def __init__(self, build: Callable[[], Any], arrays: dict[str, np.ndarray], share: range) -> None:
        self._arrays, self._share = arrays, share
        self._envs = [build() for _ in share]

    def reset(self) -> None:
        for lane, env in zip(self._share, self._envs, strict=True):
            self._arrays["observation"][lane], _ = env.reset(seed=int(self._arrays["seed"][lane]))

    def step(self) -> None:
        arrays = self._arrays
        for lane, env in zip(self._share, self._envs, strict=True):
            # A copy, since an environment may keep its action and the array is overwritten by the next step.
            observation, reward, terminated, truncated, _ = env.step(arrays["action"][lane].copy())
            arrays["reward"][lane] = reward
            arrays["terminated"][lane] = terminated
            arrays["truncated"][lane] = truncated and not terminated
            arrays["final_observation"][lane] = observation
            if terminated or truncated:
                observation, _ = env.reset()
            arrays["observation"][lane] = observation

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _fields(layout: Layout, num_envs: int) -> Fields:
    """Shape and dtype of every array that a step reads or writes."""
    observation = ((num_envs, *layout.observation_shape), np.dtype(layout.observation_dtype))
    flag = ((num_envs,), np.dtype(np.bool_))
    return {
        "seed": ((num_envs,), np.dtype(np.int64)),
        "action": ((num_envs, *layout.action_shape), np.dtype(layout.action_dtype)),
        "observation": observation,
        "reward": ((num_envs,), np.dtype(np.float32)),
        "terminated": flag,
        "truncated": flag,
        "final_observation": observation,
    }


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _view(memory: dict[str, Any], fields: Fields) -> dict[str, np.ndarray]:
    """Arrays over memory; every process makes its own view of the same bytes."""
    return {field: np.frombuffer(memory[field], dtype).reshape(shape) for field, (shape, dtype) in fields.items()}


def _serve(build: Any, shared: dict[str, Any], fields: Fields, share: range, connection: Any) -> None:
    """What another process does: obey until it is told to end, or the pipe says that its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the others
    try:
        try:
            loop = _Loop(build.fn, _view(shared, fields), share)
            work = {_RESET: loop.reset, _STEP: loop.step}
            connection.send_bytes(_DONE)
            while (command := connection.recv_bytes()) != _CLOSE:
                work[command]()
                connection.send_bytes(_DONE)
            loop.close()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception:
            connection.send_bytes(traceback.format_exc().encode())
    except (EOFError, OSError):
        pass  # the parent has ended or closed the pipe
