"""Demonstrations of many seeds, made on several processes and handed out in the order of the seeds."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor

from envs.demonstrations import Demonstration
from envs.manipulation.protocol import ManipulationEnv
from envs.manipulation.registry import EnvOptions, make_env
from envs.manipulation.rollout import RolloutSettings, demonstrate

Make = Callable[[str, EnvOptions], ManipulationEnv]


class _Held:
    """The environment of this process, kept from seed to seed: loading its meshes takes longer than an episode."""

    def __init__(self) -> None:
        self._key: tuple[Make, str, EnvOptions] | None = None
        self._env: ManipulationEnv | None = None

    def get(self, make: Make, name: str, options: EnvOptions) -> ManipulationEnv:
        if self._env is None or self._key != (make, name, options):
            self.drop()
            self._env, self._key = make(name, options), (make, name, options)
        return self._env

    def drop(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None


_held = _Held()


def _attempt(make: Make, name: str, seed: int, settings: RolloutSettings) -> Demonstration:
    env = _held.get(make, name, settings.options)
    return demonstrate(env, seed=seed, noise=settings.noise, image=settings.image)


def _start_worker() -> None:
    # Ctrl-C is for the process that writes; it ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread for drawing: the processes share the cores already.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed cannot end its workers, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Workers:
    """Processes that run experts; with one worker, this process itself. To be used in a `with` block.

    Args:
        count: of processes.
        make: an environment, its expert with it. It is sent to the processes, and an environment is kept there as long
            as `make` stays equal.
    """

    def __init__(self, count: int, *, make: Make = make_env) -> None:
        if count < 1:
            raise ValueError(f"at least 1 worker is needed, got {count}")
        self.count, self._make = count, make
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self.count > 1:
            context = multiprocessing.get_context("spawn")  # a forked OpenGL context does not work
            self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            _held.drop()
        else:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def demonstrations(
        self, name: str, *, first_seed: int, settings: RolloutSettings, wanted: Callable[[], int]
    ) -> Generator[Demonstration, None, None]:
        """Of the seeds `first_seed`, `first_seed` + 1 ... without end, in that order, however many workers there are.

        Args:
            wanted: how many the caller still wants, at least; no more than that are begun ahead.
        """
        seeds = itertools.count(first_seed)
        if self._pool is None:
            yield from (_attempt(self._make, name, seed, settings) for seed in seeds)
            return
        begun: deque[Future[Demonstration]] = deque()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [future.cancel() for future in begun])
            while True:
                # One more than there are workers, so that none waits while the caller writes.
                while len(begun) < max(1, min(self.count + 1, wanted())):
                    begun.append(self._pool.submit(_attempt, self._make, name, next(seeds), settings))
                yield begun.popleft().result()
