"""Two sides of a case, ours and Keras', in turns: durations and peak memory, one table a backend.

A case is a function: `case(who, xla)` makes one step of "ours", "theirs" or the backend's own, "native", or
returns None where there is no such side. A module of cases has a dictionary `CASES` of them and ends with
`main(__spec__.name)`.

On TensorFlow `model.fit` uses XLA only where it finds an accelerator; here, `--xla` asks for it. Ours and the
built-in run in the same process, in interleaved rounds whose order alternates, each round long enough to be
timed; the ratio is the median over rounds. Processes are pinned to `--threads` cores. Peak memory is
`ru_maxrss` of a process of its own, less what it was before the case was made. All processes are forked from
one that has imported the backend and done nothing else.
"""

import argparse
import concurrent.futures
import importlib
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

BACKENDS = ("jax", "torch", "tensorflow")
SECONDS_A_ROUND = 0.15
JAX_KEEPS_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# For the C library, where it is GNU's. By default it may return a freed tensor to the system, to be got back
# at a page fault for every 4 KiB; whether it does is an accident of sizes, and costs more than a layer.
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}


def cases_of(module: str) -> dict[str, Callable]:
    """The cases by their names."""
    return importlib.import_module(module).CASES


def seconds(step: Callable, calls: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean duration of a step."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def compare(module: str, name: str, options: argparse.Namespace) -> dict:
    """Durations of ours, the built-in and with `--native` the backend's own, interleaved."""
    case = cases_of(module)[name]
    clock = time.process_time if options.cpu_time else time.perf_counter
    made = {
        who: case(who, options.xla) for who in ("ours", "theirs", *(["native"] if options.native else []))
    }
    steps = {who: step for who, step in made.items() if step is not None}
    for step in steps.values():
        step()
    calls = max(1, round(SECONDS_A_ROUND / max(seconds(step, 1) for step in steps.values())))
    times: dict = {who: [] for who in steps}
    for number in range(options.rounds):
        for who, step in steps.items() if number % 2 else reversed(steps.items()):
            times[who].append(seconds(step, calls, clock))

    def ratios(who: str) -> list:
        return [mine / other for mine, other in zip(times[who], times["theirs"], strict=True)]

    ours = ratios("ours")
    low, middle, high = (
        statistics.quantiles(ours, n=4, method="inclusive") if options.rounds > 1 else ours * 3
    )
    result = {who: statistics.median(values) for who, values in times.items()}
    result |= {"ratio": middle, "low": low, "high": high}
    if "native" in steps:
        result["native ratio"] = statistics.median(ratios("native"))
    return result


def peak(module: str, name: str, who: str, xla: bool) -> float:
    """Growth of this process' peak memory by a few steps, in MiB."""
    import keras

    case = cases_of(module)[name]
    keras.ops.convert_to_numpy(keras.ops.ones((1,)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = case(who, xla)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_own_process(task: Callable, *arguments: Any) -> Any:
    """The task's result, in a process forked from one that has done nothing but imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras", "layers"])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as processes:
        return processes.submit(task, *arguments).result()


def table(module: str, backend: str, options: argparse.Namespace) -> None:
    """Print one backend's table, line by line as they come."""
    count = options.threads
    name_of_backend = f"{backend}{', XLA' if options.xla and backend == 'tensorflow' else ''}"
    print(f"\n### {name_of_backend}, {count} thread{'s' * (count > 1)}, median of {options.rounds} rounds\n")
    titles = ["case", "ours ms", "Keras ms", "ratio", "quartiles"]
    titles += ["ours MiB", "Keras MiB"] * (not options.no_memory)
    titles += ["native ms", "native / Keras"] * options.native
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|", flush=True)
    start, ratios = time.perf_counter(), []
    for name in options.layers:
        times = in_own_process(compare, module, name, options)
        ratios.append(times["ratio"])
        cells = [name, f"{1e3 * times['ours']:.2f}", f"{1e3 * times['theirs']:.2f}", f"{times['ratio']:.2f}"]
        cells.append(f"{times['low']:.2f} - {times['high']:.2f}")
        if not options.no_memory:
            peaks = [in_own_process(peak, module, name, who, options.xla) for who in ("ours", "theirs")]
            cells += [f"{mib:.0f}" for mib in peaks]
        if options.native:
            has = "native" in times
            cells += [f"{1e3 * times['native']:.2f}", f"{times['native ratio']:.2f}"] if has else ["-", "-"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nGeometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}; ", end="")
    print(f"the largest: {max(ratios):.2f}; {time.perf_counter() - start:.0f} s", flush=True)


def pinned(backend: str, threads: int) -> int:
    """Run this command again for one backend, held to so many cores and threads; its exit code."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")
    environment = os.environ | dict.fromkeys(names, str(threads)) | KEEP_FREED_MEMORY
    environment |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, *sys.orig_argv[1:], "--here", backend]
    with tempfile.TemporaryDirectory() as compiled:
        # JAX compiles for the durations only; the peaks are of running, and come in half of the time.
        environment |= {"JAX_COMPILATION_CACHE_DIR": compiled} | JAX_KEEPS_ALL
        return subprocess.run(
            command, env=environment, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        ).returncode


def main(module: str) -> None:
    """The command line."""
    names = list(cases_of(module))
    parser = argparse.ArgumentParser(description=f"Ours against Keras' built-in ones: {module}.")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--layers", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="cores that each process is pinned to")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--xla", action="store_true", help="compile by XLA on TensorFlow too")
    parser.add_argument(
        "--native", action="store_true", help="the backend's own layers too, where cases have them"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak-memory processes")
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process' own time: with one thread, on a shared machine"
    )
    parser.add_argument("--here", choices=BACKENDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        table(module, options.here, options)
        return
    codes = [pinned(backend, options.threads) for backend in options.backends]
    sys.exit(any(codes))
