"""Drives evenkeel and its peers in turn inside each round and prints one table: medians and ratios of the rounds.

A ratio is evenkeel's figure over the peer's in the same round, so that drift of the machine cancels; above 1 is
better for throughput. Prefill asks for one token, so that nothing is decoded; decode counts the tokens that come after
the last stream's first one, so that no prompt is read. usage: see run.sh.
"""

import argparse
import asyncio
import json
import os
import shutil
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

    def runs(self, figure, asked):
        """One adapter at a time is all that it can."""
        return asked["adapters"] <= 1

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Evenkeel:
    """The server as a client sees it: a process of its own, gRPC on loopback."""

    def __init__(self, binary, model, adapters, work, dtype="auto", root=None, label="",
                 prefix_cache_bytes=0):
        root = root or f"{work}/adapters"
        name = os.path.basename(model.rstrip("/"))
        data = f"{work}/data-{name}{label}"
        shutil.rmtree(data, ignore_errors=True)
        command = [binary, "serve", "--model", model, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                   "--data-dir", data, "--adapter-dir", root]
        log = open(f"{data}.log", "w")
        # Cases and rounds repeat prompts: everyone computes them again.
        environment = os.environ | {"EVENKEEL__MODEL__DTYPE": dtype,
                                    "EVENKEEL__ENGINE__PREFIX_CACHE_BYTES": str(prefix_cache_bytes)}
        begin = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        ready = dict(part.split("=") for part in self.process.stdout.readline().split()[1:])
        self.seconds_to_ready = time.perf_counter() - begin
        self.address, self.http = ready["grpc"], ready["http"]
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
                times = []
                request = inference_pb2.GenerateRequest(
                    adapter=name, prompt_token_ids=inference_pb2.TokenIds(ids=ids), sampling=sampling)
                async for piece in stub.GenerateStream(request):
                    times += [time.perf_counter()] * len(piece.token_ids)
                if len(times) != new:
                    raise RuntimeError(f"{len(times)} tokens instead of {new}")
                return times

            ids = peer.prompts(streams, prompt, self.vocab, seed)
            streams = await asyncio.gather(*[one(i, p) for i, p in enumerate(ids)])
            end = time.perf_counter()
        first = max(times[0] for times in streams)
        after = sum(at > first for times in streams for at in times)
        return {"first": first - begin, "total": end - begin, "after": after}

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

    def memory(self):
        return {"peak": peer.peak_bytes(self.process.pid), "resident": peer.resident_bytes(self.process.pid)}

    def runs(self, figure, asked):
        return True

    def close(self):
        self.process.terminate()
        self.process.wait()


def prefill(answer, case):
    return case["streams"] * case["prompt"] / answer["first"]


def decode(answer, _):
    return answer["after"] / (answer["total"] - answer["first"])


def both(answer, case):
    return case["streams"] * case["new"] / answer["total"]


def first(answer, _):
    return 1e3 * answer["first"]


# How many adapters are asked for beside none, and what a title says of that.
ADAPTERS = {1: ", 1 adapter", 8: ", 8 adapters"}


def cases():
    """Title, figure, what is asked: with adapters right after without, so that drift of the machine cancels there too."""
    listed = [(f"prefill {streams} x {prompt}", "tokens/s", prefill, dict(streams=streams, prompt=prompt, new=1))
              for streams, prompt in [(1, 512), (8, 64), (32, 32)]]
    listed += [(f"decode {streams} x {new}", "tokens/s", decode, dict(streams=streams, prompt=8, new=new))
               for streams, new in [(1, 64), (8, 32), (32, 32)]]
    listed += [(f"{streams} streams 32+32", "new tokens/s", both, dict(streams=streams, prompt=32, new=32))
               for streams in [8, 32]]
    listed.append(("first token after 128", "ms", first, dict(streams=1, prompt=128, new=2)))
    for name, unit, figure, asked in listed:
        for adapters, suffix in {0: "", **ADAPTERS}.items():
            # The peers run one adapter at a time.
            if adapters <= 1 or figure is both:
                yield f"{name}{suffix}, {unit}", figure, asked | dict(adapters=adapters)


def cost_of_adapters(figures, systems):
    """Rows of a table: each system's speed with adapters over its own without, in the same round; figures by title and
    name."""
    rows = []
    for title, by_name in figures.items():
        for suffix in ADAPTERS.values():
            plain = figures.get(title.replace(suffix, ""))
            if suffix not in title or title.startswith(peer.BUSY) or not plain or title.endswith(", ms"):
                continue
            ratios = [peer.ratio(by_name[name], plain[name]) if name in by_name else None for name in systems]
            rows.append([title.rsplit(", ", 1)[0], *(f"{ratio:.2f}" if ratio else "" for ratio in ratios)])
    return rows


def shrunk(asked):
    return asked | dict(prompt=min(asked["prompt"], 4), new=min(asked["new"], 3))


def measure(options, systems, note):
    """Every figure of each system in turn, in each round; where asked for, beside a busy process right after."""
    for round_number in range(1, options.rounds + 1):
        print(f"round {round_number}", file=sys.stderr)
        for title, figure, asked in cases():
            if options.only not in title:
                continue
            asked = shrunk(asked) if options.smoke else asked
            for name, system in systems.items():
                if not system.runs(figure, asked):
                    continue
                for prefix in ["", peer.BUSY] if options.busy else [""]:
                    with peer.spinner(bool(prefix)):
                        answer = system.generate(seed=round_number, **asked)
                    note(prefix + title, name, figure(answer, asked))


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "gguf", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="figures whose title holds this text")
    parser.add_argument("--smoke", action="store_true", help="a few tokens each")
    parser.add_argument("--busy", action="store_true", help="also beside one process that computes without end")
    options = parser.parse_args()
    work = os.path.abspath(options.work)
    model_dir = f"{work}/smollm2-f32"
    adapters = [f"{work}/adapters/random-{i}" for i in range(8)]
    systems = {
        "evenkeel Q4_1": Evenkeel(options.binary, options.gguf, adapters, work),
        "llama.cpp Q4_1": Child("peer_llama_cpp.py", options.gguf, adapters[0], work),
        "evenkeel f32": Evenkeel(options.binary, model_dir, adapters, work),
        "transformers f32": Child("peer_transformers.py", model_dir, "f32", adapters[0]),
    }
    figures = {}

    def note(title, name, value):
        figures.setdefault(title, {}).setdefault(name, []).append(value)
        print(title, name, f"{value:.4g}", file=sys.stderr, flush=True)

    for system in systems.values():  # warms up
        system.generate(streams=2, prompt=16, new=4, seed=0)
    measure(options, systems, note)
    for _ in range(options.rounds):
        for name, system in systems.items():
            answer = system.load(directory=adapters[1])
            note("load an adapter, ms", name, 1e3 * answer["load"])
            note("swap, ms", name, 1e3 * answer["swap"])
    for name, system in systems.items():
        note("peak memory, MiB", name, system.memory()["peak"] / 2**20)
        system.close()

    if options.smoke:
        print("a few tokens each: the figures mean nothing")
    names = list(systems)
    rows = []
    for title, by_name in figures.items():
        pairs = [names[:2], names[2:]]
        rows.append([title, *(cell for ours, theirs in pairs for cell in peer.cells(by_name.get(ours), by_name.get(theirs)))])
    print(peer.table(["figure", *names[:2], "ratio", *names[2:], "ratio"], rows))
    if rows := cost_of_adapters(figures, names):
        print("\n" + peer.table(["speed with adapters over that without", *names], rows))
    if options.busy:
        rows = [[title, *(peer.left(figures, title, name) for name in names)]
                for title in figures if peer.BUSY + title in figures]
        print("\n" + peer.table(["share of the speed that is left beside a busy process", *names], rows))


if __name__ == "__main__":
    main()
