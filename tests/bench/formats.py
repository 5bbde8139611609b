"""Figures by weight format: evenkeel and llama.cpp on the same GGUF, in turn inside each round; scoring against
transformers; perplexity.

A ratio is evenkeel's figure over the peer's in the same round. usage: run.sh --formats [--rounds N] [--only TEXT]
[--text FILE] [--llama-server [BINARY]] [--busy]. --text is what perplexity is measured on (wikitext-2's valid.txt);
--llama-server is llama.cpp's server, built with the same version as llama-cpp-python; without it the streams are
compared with llama.cpp's batch API alone, which has no HTTP in between.
"""

import argparse
import asyncio
import concurrent.futures
import ctypes
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import time

from evenkeel.v1 import inference_pb2, inference_pb2_grpc

import bench
import peer

# llama.cpp's LLAMA_FTYPE_MOSTLY_*.
FORMATS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
SYSTEMS = ("evenkeel", "llama.cpp", "llama-server")
WORDS = ("the nurse doctor said that patient engineer was late because traffic weather meeting manager teacher student "
         "bought brought apples river bank money quickly slowly happy sad old young man woman city village").split()
WINDOW = 512
IN_FLIGHT = 32


def quantise(source, target, kind):
    """Writes a GGUF in another format, every matrix in it, by llama.cpp itself."""
    import llama_cpp as lib

    params = lib.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.pure, params.nthread = kind, True, True, 2
    if lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not write {target}")


def quantised(work, name, source):
    """Path of the model in a format, written where it is missing."""
    path = f"{work}/smollm2-{name.lower()}.gguf"
    if not os.path.exists(path):
        quantise(source, path, FORMATS[name])
    return path


def items(count):
    """Two-choice items: a context and two continuations."""
    draw = random.Random(0)
    text = lambda low, high: " ".join(draw.choice(WORDS) for _ in range(draw.randint(low, high)))
    return [(text(12, 28), " " + text(2, 6), " " + text(2, 6)) for _ in range(count)]


def score(server, rows):
    """Seconds for all items, as many requests at a time as a batch of transformers has sequences, and which continuation
    is likelier."""
    stub = inference_pb2_grpc.InferenceServiceStub(server.channel)

    def one(row):
        candidates = [inference_pb2.Candidate(text=text) for text in row[1:]]
        answer = stub.Score(inference_pb2.ScoreRequest(prompt=row[0], candidates=candidates))
        sums = [candidate.sum_logprob for candidate in answer.candidates]
        return sums.index(max(sums))

    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
        choices = list(pool.map(one, rows))
    return time.perf_counter() - begin, choices


def perplexity(server, text, windows):
    """Perplexity of windows of tokens; the first half of each is context only, as llama.cpp counts."""
    stub = inference_pb2_grpc.InferenceServiceStub(server.channel)
    content = open(text).read()[:windows * WINDOW * 8]
    ids = list(stub.Tokenize(inference_pb2.TokenizeRequest(text=content)).ids)
    total, count = 0.0, 0
    for first in range(0, min(len(ids) - WINDOW, windows * WINDOW), WINDOW):
        window = ids[first:first + WINDOW]
        prompt, rest = window[:WINDOW // 2], window[WINDOW // 2:]
        candidate = inference_pb2.Candidate(token_ids=inference_pb2.TokenIds(ids=rest))
        request = inference_pb2.ScoreRequest(prompt_token_ids=inference_pb2.TokenIds(ids=prompt),
                                             candidates=[candidate])
        scored = stub.Score(request).candidates[0]
        total, count = total - scored.sum_logprob, count + len(rest)
    return math.exp(total / count)


class LlamaServer:
    """llama.cpp's own server: a process, HTTP on loopback, a connection for each stream."""

    SLOTS, CONTEXT = 32, 256

    def __init__(self, binary, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Prompts that have ended are not kept: none comes again here.
        command = [binary, "-m", model, "-t", "2", "-tb", "2", "-np", str(self.SLOTS), "-c",
                   str(self.SLOTS * self.CONTEXT), "--cache-ram", "0", "--no-webui", "--host", "127.0.0.1", "--port",
                   str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.process.poll() is None:
            try:
                if b'"status":"ok"' in asyncio.run(self._health()):
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"llama-server ended with {self.process.returncode}")

    async def _health(self):
        return await self._ask(await self._connect(), "GET", "/health", b"")

    async def _connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def _ask(self, connection, method, path, body):
        reader, writer = connection
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        answer = await reader.read()
        writer.close()
        return answer

    def runs(self, figure, asked):
        """Only the whole is measured through HTTP, without adapters."""
        return figure is bench.both and not asked["adapters"]

    def generate(self, streams, prompt, new, seed, adapters=0):
        return asyncio.run(self._generate(streams, prompt, new, seed))

    async def _generate(self, streams, prompt, new, seed):
        bodies = [json.dumps({"prompt": ids, "n_predict": new, "ignore_eos": True, "temperature": 0.0, "stream": True,
                              "cache_prompt": False}).encode() for ids in peer.prompts(streams, prompt, 49152, seed)]
        # As evenkeel's channel, they are there before the clock runs.
        connections = [await self._connect() for _ in bodies]
        begin = time.perf_counter()
        asked = [self._ask(c, "POST", "/completion", body) for c, body in zip(connections, bodies)]
        answers = await asyncio.gather(*asked)
        total = time.perf_counter() - begin
        if any(b'"stop":true' not in answer or b'"tokens_predicted":%d,' % new not in answer for answer in answers):
            raise RuntimeError(f"llama-server did not finish: {answers[0][-500:]}")
        return {"total": total}

    def close(self):
        self.process.terminate()
        self.process.wait()


def compare(options, work, name, source, table):
    """One format: all systems on one file."""
    path = quantised(work, name, source)
    adapters = [f"{work}/adapters/random-{i}" for i in range(8)]
    ours = bench.Evenkeel(options.binary, path, adapters, work)
    systems = {"evenkeel": ours, "llama.cpp": bench.Child("peer_llama_cpp.py", path, adapters[0], work)}
    if options.llama_server:
        systems["llama-server"] = LlamaServer(options.llama_server, path)
    figures = {}

    def note(title, system, value):
        figures.setdefault(title, {}).setdefault(system, []).append(value)
        print(name, title, system, f"{value:.1f}", file=sys.stderr, flush=True)

    for system in systems.values():
        system.generate(streams=2, prompt=16, new=4, seed=0)
    bench.measure(options, systems, note)
    table.update({(name, title): by_system for title, by_system in figures.items()})
    if options.text:
        table[(name, f"perplexity, {options.windows} windows")] = {
            "evenkeel": [perplexity(ours, options.text, options.windows)]}
    table[(name, "start to ready, s")] = {"evenkeel": [ours.seconds_to_ready]}
    for system in systems.values():
        system.close()
    left = [[f"{name}, {title}", *(peer.left(figures, title, system) for system in SYSTEMS)]
            for title in figures if peer.BUSY + title in figures]
    return left, [[f"{name}, {title}", *cells] for title, *cells in bench.cost_of_adapters(figures, SYSTEMS)]


def scoring(options, work, folder, table):
    """256 two-choice items: f32 against f32, bf16 and Q8_0 against bf16. transformers in batches of 32, by a loop of our
    own that computes nothing that is not asked for, and as lm-evaluation-harness uses it."""
    rows = items(16 if options.smoke else 256)
    ours = {"f32": bench.Evenkeel(options.binary, folder, [], work),
            "BF16": bench.Evenkeel(options.binary, f"{work}/smollm2-bf16.gguf", [], work),
            "Q8_0": bench.Evenkeel(options.binary, f"{work}/smollm2-q8_0.gguf", [], work)}
    kinds = {"transformers": ("peer_transformers.py", f"{work}/adapters/random-0"), "harness": ("peer_harness.py",)}
    peers = {(kind, dtype): bench.Child(script, folder, dtype, *more)
             for kind, (script, *more) in kinds.items() for dtype in ("f32", "bf16")}
    for round_number in range(options.rounds):
        answers = {peer_of: system.score(rows=rows) for peer_of, system in peers.items()}
        for name, server in ours.items():
            seconds, choices = score(server, rows)
            figures = table.setdefault((name, f"{len(rows)} items, items/s"), {})
            figures.setdefault("evenkeel", []).append(len(rows) / seconds)
            for kind in kinds:
                dtype = "f32" if name == "f32" else "bf16"
                answer = answers[kind, dtype]
                rate = len(rows) / answer["seconds"]
                figures.setdefault(f"{kind} {dtype}", []).append(rate)
                same = sum(a == b for a, b in zip(choices, answer["choices"]))
                print(round_number, name, f"{len(rows) / seconds:.1f} items/s", kind, dtype,
                      f"{rate:.1f} items/s, same choices {same}", file=sys.stderr, flush=True)
    for system in [*ours.values(), *peers.values()]:
        system.close()


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "gguf", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose title holds this text")
    parser.add_argument("--text", help="file to measure perplexity on")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--llama-server", help="llama.cpp's server")
    parser.add_argument("--smoke", action="store_true", help="a few tokens each")
    parser.add_argument("--busy", action="store_true", help="also beside one process that computes without end")
    options = parser.parse_args()
    work = os.path.abspath(options.work)
    folder = f"{work}/smollm2-f32"
    table, left, adapted = {}, [], []
    for name in FORMATS:
        if options.only and options.only in "256 items":
            quantised(work, name, options.gguf)
        else:
            rows = compare(options, work, name, options.gguf, table)
            left, adapted = left + rows[0], adapted + rows[1]
    if options.only in "256 items":
        scoring(options, work, folder, table)

    if options.smoke:
        print("a few tokens each: the figures mean nothing")
    print("| format | figure | evenkeel | peer | figure of the peer | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for (name, title), values in table.items():
        own = values.pop("evenkeel")
        start = f"| {name} | {title} | {statistics.median(own):.4g} |"
        if not values:
            print(f"{start} | | |")
        for other, figures in values.items():
            ratio = statistics.median(a / b for a, b in zip(own, figures))
            print(f"{start} {other} | {statistics.median(figures):.4g} | {ratio:.2f} |")
    if adapted:
        print("\n" + peer.table(["speed with adapters over that without", *SYSTEMS], adapted))
    if left:
        print("\n" + peer.table(["share of the speed that is left beside a busy process", *SYSTEMS], left))


if __name__ == "__main__":
    main()
