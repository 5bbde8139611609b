"""What the peers share: commands as JSON lines on stdin, answers as JSON lines on stdout.

A system has `generate(prompts, new, adapters)`: all streams begin together, greedy, and never stop before `new`
tokens. It returns the seconds to the first token (the last stream's) and to the end, and how many tokens came between.
usage by itself: peer.py --machine PROGRAM prints what a table was taken with.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys


def prompts(streams, length, vocab, seed):
    """Random token ids, different in every stream and round, so that no prefix is shared."""
    draw = random.Random(seed)
    return [[draw.randint(20, vocab - 200) for _ in range(length)] for _ in range(streams)]


def status_bytes(field, pid):
    """A size that the system keeps of a process."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def peak_bytes(pid="self"):
    """Peak resident memory of a process."""
    return status_bytes("VmHWM", pid)


def resident_bytes(pid="self"):
    """Resident memory of a process now, pages of mapped files with it."""
    return status_bytes("VmRSS", pid)


@contextlib.contextmanager
def spinner(wanted=True):
    """One process that computes without end, beside what is done meanwhile."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield
        finally:
            process.kill()


def serve(system):
    """Answers commands until stdin closes."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(system, command.pop("op"))(**command)
        print(json.dumps(answer), flush=True)


def ratio(ours, theirs):
    """Median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def number(value):
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def cells(ours, theirs):
    """Three cells of a table: the medians, and the ratio; what was not measured is empty."""
    if not ours:
        return ["", "", ""]
    if not theirs:
        return [number(statistics.median(ours)), "", ""]
    return [number(statistics.median(ours)), number(statistics.median(theirs)), f"{ratio(ours, theirs):.2f}"]


BUSY = "busy: "


def left(figures, title, name):
    """Share of a system's speed that is left beside a busy process; figures by title and name. Empty: not measured."""
    quiet, busy = figures[title].get(name), figures.get(BUSY + title, {}).get(name)
    if not busy:
        return ""
    return f"{ratio(quiet, busy) if title.endswith((', ms', ', s')) else ratio(busy, quiet):.2f}"


def table(head, rows):
    """A table as the README has it."""
    line = lambda values: f"| {' | '.join(values)} |".replace("|  |", "| |").replace("|  |", "| |")
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def machine(program):
    """Date, processor, and versions of everything that is compared."""
    models = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    own = subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    names = ("llama-cpp-python", "torch", "transformers", "peft", "lm-eval")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = os.getloadavg()[0]
    return f"{datetime.date.today()}, {os.cpu_count()} x {models[0]}, load before {load:.2f}: {own}, {versions}"


if __name__ == "__main__":
    print(machine(sys.argv[2]), flush=True)
