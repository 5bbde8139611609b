"""What the checks of a GPU share: their lines, and rows to learn from."""

import random
import sys
import time
import traceback

WORDS = "the of sea ship keel wind light winter old river stone road night small house".split()


def sentences(count, letters, seed):
    """Different texts of random short words, each with so many letters, which are as many tokens (`shapes`)."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(letters))[:letters] for _ in range(count)]


class Checks:
    """Runs checks one after the other and counts them; a check fails by an exception and may return a remark."""

    def __init__(self):
        self.passed = self.failed = 0

    def run(self, name, check, *arguments):
        begin = time.perf_counter()
        try:
            note = check(*arguments)
        except Exception as fault:  # one must not hide the others
            self.failed += 1
            print(f"FAILED  {name}: {type(fault).__name__}: {fault}", flush=True)
            traceback.print_exc(file=sys.stdout)
            return
        self.passed += 1
        print(f"ok      {name} ({time.perf_counter() - begin:.1f} s){f': {note}' if note else ''}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed or not self.passed else 0)
