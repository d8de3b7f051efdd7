"""MLflow in a process of its own, beside the training.

Importing MLflow and opening a store take as long as importing JAX and Keras: on two cores nobody waits for
both. A call is answered before the run goes on, so that what a run has flushed is stored. And when the run's
process is killed, somebody is left to say so.
"""

import contextlib
import functools
import gc
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipes.engine.errors import RecipeError
from recipes.engine.interruption import SIGNALS
from recipes.engine.outage import Away, is_away
from recipes.engine.store import Store, absolute, first_line

_beside: "Recorder | None" = None


class Recorder:
    """A `Store` in another process: the same calls, answers and errors.

    Should that process die, or a second Ctrl-C break a call, the store is opened in this process.

    Args:
        uri: any MLflow tracking URI; the process begins to open it at once.

    Attributes:
        process: the number of that process.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._here: Store | None = None
        self._answers = True
        self._asked: list[tuple] = []
        self._answered: list[tuple[bool, Any]] = []  # to the first of them
        code = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "recipes.engine.recorder", uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([code, os.environ.get("PYTHONPATH", "")])},
        )
        self.process = self._process.pid

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not hasattr(Store, name):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def ready(self) -> bool:
        """Whether an answer is there that nobody read yet, or never will be."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, name: str, *arguments: Any) -> None:
        """Ask for what a later call will ask for, which then need not wait so long."""
        with contextlib.suppress(OSError):  # that call will find out, too
            pickle.dump((name, arguments), self._process.stdin)
            self._process.stdin.flush()
        self._asked.append((name, arguments))

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._answers:
            try:
                if (name, arguments) not in self._asked:
                    self.ask(name, *arguments)
                place = self._asked.index((name, arguments))
                while len(self._answered) <= place:
                    self._answered.append(pickle.load(self._process.stdout))
                del self._asked[place]
                answered, answer = self._answered.pop(place)
            except (OSError, EOFError, pickle.UnpicklingError):
                self._answers = False
            except BaseException:
                self._answers = False  # half an answer may have been read
                raise
            else:
                if answered:
                    return answer
                raise answer
        self._here = self._here or Store(self.uri)
        return getattr(self._here, name)(*arguments)


@contextlib.contextmanager
def beside(uri: str | None) -> Iterator[None]:
    """Within, runs that are tracked at this URI are recorded by a process of its own."""
    global _beside
    _beside = Recorder(absolute(uri))
    try:
        yield
    finally:
        recorder, _beside = _beside, None
        recorder.close()


def store(uri: str | None) -> Store | Recorder:
    """What to record runs with that are tracked at a URI: the process beside this one, or this one."""
    uri = absolute(uri)
    return _beside if _beside is not None and _beside.uri == uri else Store(uri)


def ahead(uri: str, name: str, *arguments: Any) -> bool:
    """Have the process beside this one begin with what is asked next; False if there is none for this URI."""
    if _beside is None or _beside.uri != uri:
        return False
    _beside.ask(name, *arguments)
    return True


def ready(uri: str) -> bool:
    """Whether the process beside this one has an answer for who asks now."""
    return _beside is not None and _beside.uri == uri and _beside.ready()


def process() -> int | None:
    """The number of the process beside this one."""
    return None if _beside is None else _beside.process


def serve(uri: str) -> None:
    """Make the calls that come by standard input, until it ends: with the run, or with its process.

    A run that has not ended by then was killed.
    """
    for number in SIGNALS:  # they are the run's to hear; its end is this one's
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    kept, runs = None, set()
    gc.disable()  # nothing that is imported is garbage
    with contextlib.suppress(Exception):  # said when it is asked for something
        kept = Store(uri)
    gc.freeze()
    gc.enable()
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        try:
            kept = kept or Store(uri)
            answer = True, getattr(kept, name)(*arguments)
            if name in ("start", "reopen"):
                runs.add(answer[1][0] if name == "start" else arguments[0])
            elif name == "set_terminated":
                runs.discard(arguments[0])
        except (RecipeError, OSError) as error:
            answer = False, error
        except Exception as error:
            kind = Away if is_away(error) else RecipeError
            answer = False, kind(f"{type(error).__name__}: {first_line(error)}")
        with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
            pickle.dump(answer, answers)
            answers.flush()
    for run_id in runs:
        with contextlib.suppress(RecipeError, OSError):
            if kept.look_up(run_id).status == "RUNNING":
                kept.set_terminated(run_id, "KILLED")


if __name__ == "__main__":
    serve(sys.argv[1])
    sys.stderr.flush()
    os._exit(0)  # Python would take apart all that MLflow has loaded, while the run's process waits
