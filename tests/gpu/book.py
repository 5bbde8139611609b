"""Figures of a run: written after each, so that a run that is ended loses none; tables, and what is asked of them.

A figure has ours, the peer's and what the machine allows at best (`limit`). Above 1 is a better ratio, but where
`lower` says that a smaller figure is better. A bar is met, missed, or not measured.
"""

import contextlib
import json
import os
import time
import traceback

import peer


class Book:
    """All figures of a run; `seconds` are what it may take."""

    def __init__(self, folder, seconds):
        self.folder, self.end = folder, time.monotonic() + seconds
        self.machine, self.limits, self.figures, self.notes = "", {}, [], []
        os.makedirs(folder, exist_ok=True)

    def left(self):
        return self.end - time.monotonic()

    def note(self, text):
        print(text, flush=True)
        self.notes.append(text)

    @contextlib.contextmanager
    def part(self, title):
        """What fails in here ends nothing but itself."""
        begin = time.monotonic()
        try:
            yield
        except Exception as fault:
            self.note(f"FAILED {title}: {short(fault)}")
            traceback.print_exc()
        print(f"{title}: {time.monotonic() - begin:.1f} s, {self.left():.0f} s left", flush=True)
        self.save()

    def has(self, seconds, title):
        """Whether so many seconds are left; notes what is left out."""
        if self.left() >= seconds:
            return True
        self.note(f"no time for {title}: about {seconds:.0f} s, {self.left():.0f} s left")
        return False

    def add(self, model, title, ours=None, theirs=None, limit=None, lower=False):
        row = dict(model=model, title=title, ours=ours, peer=theirs, limit=limit, lower=lower)
        row["ratio"] = ours / theirs if ours and theirs else None
        row["share"] = (limit / ours if lower else ours / limit) if ours and limit else None
        self.figures.append(row)
        print(f"{model} | {title} | {' | '.join(self.cells(row))}", flush=True)

    def find(self, model, title):
        return next((row for row in self.figures if (row["model"], row["title"]) == (model, title)), None)

    def bars(self, model):
        """What is asked of the figures of a model of 7 billion weights: text, found, met or not, None: not measured."""
        def value(title, key="ours"):
            row = self.find(model, title)
            return row and row[key]

        def cost(title, base):
            ours, alone = value(title), value(base)
            return 1 - ours / alone if ours and alone else None

        yield bar("decode of one stream: at least 75 % of the bandwidth", value("decode 1, tokens/s", "share"), 0.75)
        yield bar("decode of one stream: at least 3 x transformers", value("decode 1, tokens/s", "ratio"), 3)
        yield bar("one adapter costs at most 10 % of one stream",
                  cost("decode 1, 1 adapter, tokens/s", "decode 1, tokens/s"), 0.10, lower=True)
        yield bar("32 adapters cost at most 30 % of 32 streams",
                  cost("decode 32, 32 adapters, tokens/s", "decode 32, tokens/s"), 0.30, lower=True)
        yield bar("an adapter in host memory: its first token at most 5 ms later", value("swap, ms more"), 5, lower=True)
        for row in [row for row in self.figures if row["model"] == model and row["title"].startswith("LoRA")]:
            if row["title"].endswith("tokens/s"):
                yield bar(f"{row['title']}: at least 1.2 x PEFT", row["ratio"], 1.2)
            else:
                yield bar(f"{row['title']}: no more than PEFT", row["ratio"], 1, lower=True)

    def cells(self, row):
        text = lambda value: "" if value is None else peer.number(value)
        share = "" if row["share"] is None else f"{row['share']:.0%}"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        return [text(row["ours"]), text(row["peer"]), ratio, text(row["limit"]), share]

    def save(self):
        bars = {model: list(self.bars(model)) for model in dict.fromkeys(row["model"] for row in self.figures)
                if "7b" in model or "tiny" == model}
        with open(f"{self.folder}/figures.json", "w") as file:
            json.dump(dict(machine=self.machine, limits=self.limits, figures=self.figures, bars=bars,
                           notes=self.notes), file, indent=1)
        with open(f"{self.folder}/figures.md", "w") as file:
            print(self.machine, "", sep="\n", file=file)
            print(", ".join(f"{name}: {peer.number(value)}" for name, value in self.limits.items()), "", sep="\n",
                  file=file)
            head = ["figure", "evenkeel", "transformers + PEFT", "ratio", "limit", "share of the limit"]
            print(peer.table(head, [[f"{row['model']}: {row['title']}", *self.cells(row)] for row in self.figures]),
                  file=file)
            for model, found in bars.items():
                print("", peer.table([f"asked of {model}", "found", ""], [
                    [one["bar"], "" if one["found"] is None else f"{one['found']:.3g}", one["state"]]
                    for one in found]), sep="\n", file=file)
            for note in self.notes:
                print("", note, sep="\n", file=file)


def short(fault):
    """An error in one line."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300]


def bar(text, found, wanted, lower=False):
    met = None if found is None else (found <= wanted if lower else found >= wanted)
    return dict(bar=text, found=found, wanted=wanted,
                state="not measured" if met is None else "met" if met else "MISSED")
