"""Drives evenkeel and its peers in turn inside each round and prints medians and ratios of the rounds.

A ratio is evenkeel's figure over the peer's in the same round, so that drift of the machine cancels; above 1 is
better for throughput. usage: see run.sh.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import grpc
from evenkeel.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc, server_pb2, server_pb2_grpc

import peer

HERE = os.path.dirname(os.path.abspath(__file__))


class Child:
    """A peer in a process of its own."""

    def __init__(self, script, *args):
        command = [sys.executable, os.path.join(HERE, script), *args]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args[1]} ended")
        return json.loads(line)

    def __getattr__(self, op):
        def call(**arguments):
            self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self.process.stdin.flush()
            return self.answer()

        return call

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Evenkeel:
    """The server as a client sees it: a process of its own, gRPC on loopback."""

    def __init__(self, binary, model, adapters, work):
        root = f"{work}/adapters"
        name = os.path.basename(model.rstrip("/"))
        data = f"{work}/data-{name}"
        shutil.rmtree(data, ignore_errors=True)
        command = [binary, "serve", "--model", model, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                   "--data-dir", data, "--adapter-dir", root]
        log = open(f"{data}.log", "w")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        ready = dict(part.split("=") for part in self.process.stdout.readline().split()[1:])
        self.address = ready["grpc"]
        self.channel = grpc.insecure_channel(self.address)
        self.adapters = adapter_pb2_grpc.AdapterServiceStub(self.channel)
        self.names = []
        for directory in adapters:
            name = os.path.basename(directory)
            self.adapters.LoadAdapter(adapter_pb2.LoadAdapterRequest(name=name, directory=name))
            self.names.append(name)
        info = server_pb2_grpc.ServerServiceStub(self.channel).GetServerInfo(server_pb2.GetServerInfoRequest())
        self.vocab = info.base_model.vocab_size

    def generate(self, streams, prompt, new, seed, adapters=0):
        return asyncio.run(self._generate(streams, prompt, new, seed, adapters))

    async def _generate(self, streams, prompt, new, seed, adapters):
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await channel.channel_ready()
            begin = time.perf_counter()

            async def one(stream, ids):
                sampling = inference_pb2.SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
                name = self.names[stream % adapters] if adapters else ""
                first, count = None, 0
                request = inference_pb2.GenerateRequest(
                    adapter=name, prompt_token_ids=inference_pb2.TokenIds(ids=ids), sampling=sampling)
                async for piece in stub.GenerateStream(request):
                    count += len(piece.token_ids)
                    if first is None and count:
                        first = time.perf_counter()
                if count != new:
                    raise RuntimeError(f"{count} tokens instead of {new}")
                return first

            ids = peer.prompts(streams, prompt, self.vocab, seed)
            firsts = await asyncio.gather(*[one(i, p) for i, p in enumerate(ids)])
            end = time.perf_counter()
        return {"first": max(firsts) - begin, "total": end - begin, "peak": peer.peak_bytes(self.process.pid)}

    def load(self, directory):
        """Seconds to load an adapter from disk under a new name, then to point an alias at it."""
        name = os.path.basename(directory)
        begin = time.perf_counter()
        self.adapters.LoadAdapter(adapter_pb2.LoadAdapterRequest(name="second", directory=name))
        loaded = time.perf_counter()
        self.adapters.SetAlias(adapter_pb2.SetAliasRequest(name="live", adapter=self.names[0]))
        before = time.perf_counter()
        self.adapters.SetAlias(adapter_pb2.SetAliasRequest(name="live", adapter="second"))
        swapped = time.perf_counter()
        self.adapters.DeleteAlias(adapter_pb2.DeleteAliasRequest(name="live"))
        self.adapters.DeleteAdapter(adapter_pb2.DeleteAdapterRequest(name="second"))
        return {"load": loaded - begin, "swap": swapped - before}

    def close(self):
        self.process.terminate()
        self.process.wait()


def prefill(answer, case):
    return case["streams"] * case["prompt"] / answer["first"]


def decode(answer, case):
    return case["streams"] * (case["new"] - 1) / (answer["total"] - answer["first"])


def aggregate(answer, case):
    return case["streams"] * case["new"] / answer["total"]


def first(answer, _):
    return 1 / answer["first"]


CASES = [
    ("prefill 512, tokens/s", prefill, dict(streams=1, prompt=512, new=1)),
    ("decode 1 stream, tokens/s", decode, dict(streams=1, prompt=8, new=64)),
    ("8 streams 32+32, tokens/s", aggregate, dict(streams=8, prompt=32, new=32)),
    ("32 streams 32+32, tokens/s", aggregate, dict(streams=32, prompt=32, new=32)),
    ("first token after 128, 1/s", first, dict(streams=1, prompt=128, new=2)),
    ("prefill 512, 1 adapter", prefill, dict(streams=1, prompt=512, new=1, adapters=1)),
    ("decode 1 stream, 1 adapter", decode, dict(streams=1, prompt=8, new=64, adapters=1)),
    ("8 streams, 1 adapter", aggregate, dict(streams=8, prompt=32, new=32, adapters=1)),
    ("32 streams, 1 adapter", aggregate, dict(streams=32, prompt=32, new=32, adapters=1)),
]
OURS_ONLY = [("8 streams, 8 adapters", aggregate, dict(streams=8, prompt=32, new=32, adapters=8))]


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "gguf", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose title holds this text")
    options = parser.parse_args()
    work = os.path.abspath(options.work)
    model_dir = f"{work}/smollm2-f32"
    adapters = [f"{work}/adapters/random-{i}" for i in range(8)]
    prepare = [sys.executable, os.path.join(HERE, "peer_transformers.py"), "--prepare", options.gguf, model_dir]
    subprocess.run([*prepare, *adapters], check=True)

    systems = {
        "evenkeel Q4_1": Evenkeel(options.binary, options.gguf, adapters, f"{work}"),
        "llama.cpp Q4_1": Child("peer_llama_cpp.py", options.gguf, adapters[0], work),
        "evenkeel f32": Evenkeel(options.binary, model_dir, adapters, f"{work}"),
        "transformers f32": Child("peer_transformers.py", model_dir, "f32", adapters[0]),
    }
    pairs = [("evenkeel Q4_1", "llama.cpp Q4_1"), ("evenkeel f32", "transformers f32")]
    figures = {}
    for system in systems.values():  # warms up
        system.generate(streams=2, prompt=16, new=4, seed=0)
    for round_number in range(1, options.rounds + 1):
        for title, figure, case in CASES + OURS_ONLY:
            if options.only not in title:
                continue
            for name, system in systems.items():
                if (title, figure, case) in OURS_ONLY and not isinstance(system, Evenkeel):
                    continue
                answer = system.generate(seed=round_number, **case)
                figures.setdefault((title, name), []).append(figure(answer, case))
                figures[("peak memory, MiB", name)] = [answer["peak"] / 2**20]
                print(round_number, title, name, f"{figure(answer, case):.1f}", file=sys.stderr, flush=True)
        for name, system in systems.items():
            if name.startswith("llama"):
                continue
            answer = system.load(directory=adapters[1])
            figures.setdefault(("load an adapter, ms", name), []).append(1e3 * answer["load"])
            figures.setdefault(("swap, ms", name), []).append(1e3 * answer["swap"])
    for system in systems.values():
        system.close()

    titles = [title for title, _, _ in CASES + OURS_ONLY] + ["load an adapter, ms", "swap, ms", "peak memory, MiB"]
    for ours, theirs in pairs:
        print(f"\n| figure | {ours} | {theirs} | ratio |\n| --- | --- | --- | --- |")
        for title in titles:
            a, b = figures.get((title, ours)), figures.get((title, theirs))
            if a and b:
                ratio = statistics.median(x / y for x, y in zip(a, b))
                print(f"| {title} | {statistics.median(a):.3g} | {statistics.median(b):.3g} | {ratio:.2f} |")
            elif a:
                print(f"| {title} | {statistics.median(a):.3g} | | |")


if __name__ == "__main__":
    main()
