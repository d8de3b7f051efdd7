"""Packs: runs of one recipe that train side by side in one compiled program.

    pack = Pack()
    results = pack.run([lambda: run_recipe(one, train), lambda: run_recipe(other, train)])

The runs are threads that take turns: only one of them works at a time, so that nothing in a recipe needs to
know of the others. Where they train, all come together, and one call of a program does the steps of all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

_here = threading.local()


def current() -> Pack | None:
    """The pack that the run of this thread belongs to."""
    return getattr(_here, "pack", None)


@dataclass
class _Request:
    """Steps that one run waits for."""

    program: Callable
    variables: Sequence[keras.Variable]
    arguments: tuple[np.ndarray, ...]
    result: Any = None

    @property
    def kind(self) -> tuple:
        """What can be done in one call with others of its kind."""
        return id(self.program), tuple(argument.shape for argument in self.arguments)


class Pack:
    """Runs that train together.

    Attributes:
        size: how many began.
    """

    def __init__(self) -> None:
        self.size = 0
        self._turn = threading.Condition()  # who holds its lock works; who waits has given it up
        self._requests: list[_Request] = []
        self._active = 0

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all jobs to their ends.

        Args:
            jobs: functions of no arguments, one a run.

        Returns:
            What each returned, or the exception that ended it.
        """
        results: list[Any] = [None] * len(jobs)

        def work(place: int) -> None:
            _here.pack = self
            with self._turn:
                try:
                    results[place] = jobs[place]()
                except Exception as error:
                    results[place] = error
                finally:
                    self._active -= 1
                    self._go_on()

        self.size = self._active = len(jobs)
        threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in range(len(jobs))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._turn.acquire()  # for good: none of them goes on
            raise
        return results

    def call(self, program: Callable, variables: Sequence[keras.Variable], *arguments: np.ndarray) -> Any:
        """Call a program of `gradients.program_for_many` with this run's variables, together with the others.

        Args:
            program: what all runs of the same kind call.
            variables: this run's.
            arguments: arrays whose first axis is the step.

        Returns:
            The program's results for this run.
        """
        request = _Request(program, variables, arguments)
        self._requests.append(request)
        self._go_on()
        while request.result is None:
            self._turn.wait()
        if isinstance(request.result, Exception):
            raise request.result
        return request.result

    def _go_on(self) -> None:
        """Do what is asked for, once every run that is left waits for it."""
        if not self._requests or len(self._requests) < self._active:
            return
        requests, self._requests = self._requests, []
        kinds: dict[tuple, list[_Request]] = {}
        for request in requests:
            kinds.setdefault(request.kind, []).append(request)
        for same in kinds.values():
            try:
                arguments = [np.stack(parts) for parts in zip(*(r.arguments for r in same), strict=True)]
                results = same[0].program([request.variables for request in same], *arguments)
                for request, result in zip(same, results, strict=True):
                    request.result = result
            except Exception as error:
                for request in same:
                    request.result = error
        self._turn.notify_all()
