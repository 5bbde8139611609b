"""What the peers share: commands as JSON lines on stdin, answers as JSON lines on stdout.

A system has `generate(prompts, new, adapters)`: all streams begin together, greedy, and never stop before `new`
tokens. It returns the seconds to the first token (the last stream's) and to the end.
"""

import json
import random
import sys


def prompts(streams, length, vocab, seed):
    """Random token ids, different in every stream and round, so that no prefix is shared."""
    draw = random.Random(seed)
    return [[draw.randint(20, vocab - 200) for _ in range(length)] for _ in range(streams)]


def peak_bytes(pid="self"):
    """Peak resident memory of a process."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def serve(system):
    """Answers commands until stdin closes."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(system, command.pop("op"))(**command)
        print(json.dumps(answer), flush=True)
