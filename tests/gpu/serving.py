"""Checks of a running server on its device: swaps under load, the same bits, a killed job, what memory is planned.

No peer takes part: what a server answered when it did nothing else is what it must answer always.
Prints one line a check; the exit code is 1 where one fails. usage: see run.sh.
"""

import argparse
import itertools
import threading
import time

from evenkeel.v1 import job_pb2

import checking
import peer
import shapes
from server import Server, succeeded, texts

STREAMS = 8
SWAPS = 40
# Seconds until streams of both adapters have ended.
LONGEST = 40
JSONL = dict(format="DATASET_FORMAT_JSONL", text_column="text")


class Load:
    """Threads that call the same function again and again until the end of a block; the first fault is raised there."""

    def __init__(self, call, threads):
        self.stop, self.answers, self.faults = threading.Event(), [], []
        self.threads = [threading.Thread(target=self._run, args=(call, i)) for i in range(threads)]

    def _run(self, call, number):
        try:
            for turn in itertools.count():
                if self.stop.is_set():
                    return
                self.answers.append(call(number, turn))
        except Exception as fault:
            self.faults.append(fault)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        if self.faults and not kind:
            raise self.faults[0]


def swap_under_load(server, new):
    """Streams of an alias that is moved all the time: each is written whole by one generation, as if it were alone."""
    prompts = peer.prompts(STREAMS, 12, server.vocab, 1)
    expected = {}
    for name in server.names[:2]:
        for number, prompt in enumerate(prompts):
            tokens, generation = server.stream(prompt, new, name)
            expected[number, generation] = tokens
    generations = {generation for _, generation in expected}
    assert len(generations) == 2 and "" not in generations, generations
    assert len({tuple(tokens) for tokens in expected.values()}) > STREAMS, "the adapters write the same"
    server.client.set_alias("live", server.names[0])
    begun = {name: 0 for name in generations}
    with Load(lambda number, _: (number, *server.stream(prompts[number], new, "live")), STREAMS) as load:
        end, turn = time.monotonic() + LONGEST, 0
        while turn < SWAPS or len({seen for _, _, seen in load.answers}) < 2 and time.monotonic() < end:
            server.client.set_alias("live", server.names[turn % 2])
            turn += 1
            time.sleep(0.03)
    for number, tokens, generation in load.answers:
        begun[generation] += 1
        assert tokens == expected[number, generation], f"a stream of {generation} wrote what it does not write alone"
    assert all(begun.values()), f"no stream of one of both: {begun}"
    return f"{turn} swaps, {len(load.answers)} streams, {sorted(begun.values())} of each generation"


def same_bits(server, new):
    """Scores three times alone, then beside streams and other scores of several lengths."""
    sequences = peer.prompts(6, 60, server.vocab, 2)
    asked = [(s[:20 + 5 * i], s[20 + 5 * i:], name) for i, s in enumerate(sequences) for name in ("", server.names[0])]
    first = [server.score(*one) for one in asked]
    for _ in range(2):
        assert [server.score(*one) for one in asked] == first, "other bits, alone"
    prompts = peer.prompts(STREAMS, 33, server.vocab, 3)

    def other(number, turn):
        name = ["", *server.names][(number + turn) % (1 + len(server.names))]
        if number % 2:
            return server.stream(prompts[number][:5 + 7 * (turn % 4)], new, name)
        return server.scores(prompts[number], [prompts[turn % STREAMS][:1 + turn % 9]] * (1 + turn % 3), name)

    with Load(other, STREAMS) as load:
        for _ in range(3):
            for one, bits in zip(asked, first):
                assert server.score(*one) == bits, f"other bits beside {len(load.answers)} answers"
    assert load.answers, "there was no load"
    return f"{sum(map(len, first))} log-probabilities, beside {len(load.answers)} other answers"


def prompt_again(server, new):
    """A prompt that begins like another one takes what was computed of that, and goes on as it would alone."""
    prompt, other = peer.prompts(2, 50, server.vocab, 7)
    hits = lambda: sum(value for name, value in server.metrics().items()
                       if name.startswith("evenkeel_prefix_cache_hits_total"))
    alone = [server.stream(own, new, server.names[0])[0] for own in (other[:20] + prompt[20:], prompt)]
    before = hits()
    again = [server.stream(own, new, server.names[0])[0] for own in (prompt[:40] + other[40:], prompt)]
    found = hits() - before
    assert found >= 40 + 49, f"{found:.0f} tokens were taken"
    assert again[1] == alone[1], "the prompt that came again got other tokens"
    return f"{found:.0f} tokens of prompts were not computed again"


def generation_of(job):
    return succeeded(job).result.generation


def killed_job(options, folder):
    """A job of a server that is killed goes on in the next one, and ends as if nothing had been."""
    steps, every = 24, 4
    rows = texts(checking.sentences(32, 200, 4))
    settings = dict(steps=steps, batch_size=4, max_tokens=96, lora={"rank": 8, "dropout": 0.1}, learning_rate=1e-3)
    start = lambda keep: Server(options.program, folder, f"{options.work}/killed", options.device, keep=keep,
                                JOBS__CHECKPOINT_STEPS=every)
    with start(False) as server:
        server.client.upload_dataset("rows", rows, **JSONL)
        losses, _, job = server.tuned("whole", "rows", **settings)
        whole = generation_of(job)
        job = server.client.fine_tune("killed", "rows", **settings)
        for event in server.client.watch_job(job):
            if event.WhichOneof("event") == "progress" and event.progress.step >= 2 * every + 2:
                break
        server.kill()
    with start(True) as server:
        after, _, ended = server.watched(job)
        killed = generation_of(ended)
        assert len(after) == steps, f"{len(after)} steps instead of {steps}"
        computed = server.metrics()["evenkeel_training_steps_total"]
        assert 0 < computed < steps, f"{computed:.0f} of {steps} steps computed after the kill"
        off = max(abs(a - b) / b for a, b in zip(after, losses))
        if killed == whole:
            return f"killed after step {2 * every + 2}, {computed:.0f} steps computed after: the same bits as without"
        # On the CPU it is promised; on a GPU only that it goes on where it was.
        assert options.device != "cpu", f"other bits than without, losses off by {off:.1e}"
        assert off < 1e-3, f"losses off by {off:.1e}"
        return f"killed after step {2 * every + 2}: NOT the same bits, losses off by {off:.1e}"


def memory_is_told(server, options):
    """On a GPU the metrics say what was set aside there."""
    found = {name: value for name, value in server.metrics().items() if "bytes" in name}
    own = {name: value for name, value in found.items() if "device" in name or "gpu" in name}
    assert options.device == "cpu" or any(own.values()), f"no metric says what is reserved on the device: {found}"
    return ", ".join(f"{name} {value:.4g}" for name, value in (own or found).items())


def too_large_a_job(server, options):
    """Refused with a reason before anything is computed, and the server serves on."""
    before = server.stream([5, 6, 7], 8)
    rows = texts(checking.sentences(4096, 2048, 6))
    server.client.upload_dataset("long", rows, **JSONL)
    _, _, job = server.tuned("large", "long", full={}, steps=1, batch_size=4096, max_tokens=2048)
    assert job.state == job_pb2.JOB_STATE_FAILED, f"state {job.state}"
    assert job.error.reason == "TRAINING_MEMORY", job.error
    assert server.stream([5, 6, 7], 8) == before, "the server writes something else than before"
    return job.error.message


def main():
    parser = argparse.ArgumentParser()
    for name in ("program", "device", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tiny", action="store_true", help="the smallest model")
    options = parser.parse_args()
    folder, root = f"{options.work}/serving/model", f"{options.work}/serving/adapters"
    model = "tiny" if options.tiny else "middle"
    shapes.write_model(model, folder, seed=6)
    for seed in range(2):
        shapes.write_adapter(model, f"{root}/a{seed}", seed)
    checks, new = checking.Checks(), 12 if options.tiny else 48
    # In f32 no token depends on the rounding of the batch that it was computed in.
    for dtype, parts in (("f32", [("a swap under load", swap_under_load, new), ("a prompt again", prompt_again, new)]),
                         ("auto", [("scores are the same bits", same_bits, new),
                                   ("memory is told", memory_is_told, options),
                                   ("a job that cannot fit", too_large_a_job, options)])):
        with Server(options.program, folder, f"{options.work}/serving", options.device, dtype, root,
                    ENGINE__PREFIX_CACHE_BYTES=64 << 20) as server:
            for name in ("a0", "a1"):
                server.register(name, name)
            for name, check, argument in parts:
                before = checks.failed
                checks.run(name, check, server, argument)
                if checks.failed > before:
                    print(server.tail())
    checks.run("a killed job goes on", killed_job, options, folder)
    checks.end()


if __name__ == "__main__":
    main()
