"""What evenkeel costs by itself: its start, gRPC, more streams, more registered adapters, a swap, a prompt that comes
again.

No peer computes here; a ratio is of evenkeel's own figures in the same round. usage: run.sh --alone [--rounds N]
[--adapters N] [--only TEXT], TEXT one of start, grpc, streams, adapters, swap, prompt.
"""

import argparse
import asyncio
import ctypes
import mmap
import os
import random
import statistics
import subprocess
import sys
import time
import urllib.request

import numpy
from evenkeel.v1 import adapter_pb2, adapter_pb2_grpc, inference_pb2, inference_pb2_grpc
from grpc import aio
from safetensors.numpy import save_file

import bench
import formats
import peer


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def files_of(model):
    """The files of a model: itself, or those of its folder."""
    return [entry.path for entry in os.scandir(model)] if os.path.isdir(model) else [model]


def cached_bytes(path):
    """Bytes of a file that are in the page cache."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None).mincore(address, length, pages)
        # Nothing may point into the map when it is closed.
        del first
        if failed:
            raise RuntimeError(f"mincore fails on {path}")
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def forget(path):
    """Puts a file out of the page cache: what is written, and mapped by nobody."""
    os.sync()
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = cached_bytes(path)
    if left > 1 << 20:
        say(f"{left >> 20} MiB of {path} stay in the page cache: its start is not cold")


def remember(path):
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def start(options, work):
    """From the start of the process to the line that says ready, and memory then; the model's file cold or warm."""
    models = {name: formats.quantised(work, name, options.gguf) for name in formats.FORMATS}
    models["f32 folder"] = f"{work}/smollm2-f32"
    rows = []
    for name, model in models.items():
        seconds, memory = {forget: [], remember: []}, {forget: [], remember: []}
        for _ in range(options.rounds):
            for prepare in (forget, remember):
                for path in files_of(model):
                    prepare(path)
                server = bench.Evenkeel(options.binary, model, [], work)
                memory[prepare].append(server.memory()["resident"] / 2**20)
                seconds[prepare].append(server.seconds_to_ready)
                server.close()
                say(name, prepare.__name__, f"{seconds[prepare][-1]:.2f} s {memory[prepare][-1]:.0f} MiB")
        values = [seconds[forget], memory[forget], seconds[remember], memory[remember]]
        rows.append([name, *(peer.number(statistics.median(value)) for value in values)])
    return ["start to ready", "cold, s", "resident, MiB", "warm, s", "resident, MiB"], rows


def grpc(options, work):
    """Streams through gRPC against the engine alone: cargo builds what prints the table itself."""
    smoke = ["smoke"] if options.smoke else []
    command = ["cargo", "bench", "--bench", "engine", "--", options.gguf, str(3 * options.rounds), *smoke]
    subprocess.run(command, check=True)
    return None, []


def streams(options, work):
    """Decode by streams."""
    server = bench.Evenkeel(options.binary, options.gguf, [], work)
    rows = []
    for count in (1, 2, 4, 8, 16, 32, 64):
        case = dict(streams=count, prompt=16, new=3 if options.smoke else 32)
        values = [bench.decode(server.generate(seed=r, **case), case) for r in range(options.rounds)]
        rows.append([str(count), peer.number(statistics.median(values))])
    server.close()
    return ["streams", "decode, tokens/s"], rows


def small_adapter(folder, seed):
    """Writes a PEFT adapter of rank 1 on the queries of three layers, 14 kB: as many as are wanted fit into memory."""
    draw, tensors = numpy.random.default_rng(seed), {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = draw.normal(0, 0.05, (1, 576)).astype(numpy.float32)
        tensors[f"{name}.lora_B.weight"] = draw.normal(0, 0.05, (576, 1)).astype(numpy.float32)
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
    with open(f"{folder}/adapter_config.json", "w") as config:
        config.write('{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 2, '
                     '"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 2]}')


def gauge(server, name):
    """One number of the server's metrics."""
    with urllib.request.urlopen(f"http://{server.http}/metrics") as page:
        return next(float(line.split()[1]) for line in page.read().decode().splitlines() if line.startswith(f"{name} "))


def adapters(options, work):
    """A stream of one adapter among more and more, each of its own content, all in memory, and in turn on a server that
    has one."""
    root = f"{work}/growing"
    one, many = (bench.Evenkeel(options.binary, options.gguf, [], work, root=root, label=label)
                 for label in ("-one", "-many"))

    def register(server, count):
        begin = time.perf_counter()
        for i in range(len(server.names), count):
            small_adapter(f"{root}/next", i)
            server.adapters.LoadAdapter(adapter_pb2.LoadAdapterRequest(name=f"small-{i}", directory="next"))
            server.names.append(f"small-{i}")
        return time.perf_counter() - begin

    register(one, 1)
    case, rows, draw = dict(streams=1, prompt=8, new=3 if options.smoke else 64, adapters=1), [], random.Random(0)
    before, known = None, []
    for count in [n for n in (1, 10, 100, 1000, 10000) if n <= options.adapters]:
        many.names, added = known, count - len(known)
        seconds = register(many, count)
        known = many.names
        for server in (one, many):
            server.generate(seed=0, **case)
        if gauge(many, "evenkeel_adapters_resident") != count:
            raise RuntimeError("not all adapters are in memory")
        resident = many.memory()["resident"]
        values = {one: [], many: []}
        for r in range(3 * options.rounds):
            # Another one each time: none stays in the processor's caches.
            many.names = [draw.choice(known)]
            for server, found in values.items():
                found.append(bench.decode(server.generate(seed=r, **case), case))
        each = f"{(resident - before) / added / 2**10:.1f}" if before else ""
        before = resident
        rows.append([str(count), *peer.cells(values[many], values[one]), peer.number(1e3 * seconds / added),
                     peer.number(resident / 2**20), each])
        say("adapters", *rows[-1])
    one.close()
    many.close()
    return ["registered adapters", "decode, tokens/s", "server with one", "ratio", "load, ms each", "resident, MiB",
            "KiB each new one"], rows


# Tokens of a stream from one call beside it to the next, and what is called: a swap, its control, nothing.
APART, DONE = 10, ["alias moved", "alias read", "no call"]


async def beside(server, name, done, new, seed):
    """One stream of `name`, and calls of another connection meanwhile: when each token came, when each call began and
    ended."""
    draw, times, calls, running = random.Random(seed), [], [], []
    # Otherwise both channels may share one connection.
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with aio.insecure_channel(server.address, own) as one, aio.insecure_channel(server.address, own) as other:
        stub, adapters = inference_pb2_grpc.InferenceServiceStub(one), adapter_pb2_grpc.AdapterServiceStub(other)

        async def move(target):
            await adapters.SetAlias(adapter_pb2.SetAliasRequest(name="live", adapter=target))

        async def call(count, wait):
            await asyncio.sleep(wait)
            begin = time.perf_counter()
            if done == "alias moved":
                await move(server.names[count % 2])
            elif done == "alias read":
                await adapters.GetAlias(adapter_pb2.GetAliasRequest(name="live"))
            else:
                await asyncio.sleep(1e-3)
            calls.append((begin, time.perf_counter()))

        # Every stream begins with the alias at the same adapter, and with both connections open.
        await asyncio.gather(move(server.names[0]), one.channel_ready())
        sampling = inference_pb2.SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
        ids = inference_pb2.TokenIds(ids=peer.prompts(1, 16, server.vocab, seed)[0])
        request = inference_pb2.GenerateRequest(adapter=name, prompt_token_ids=ids, sampling=sampling)
        async for piece in stub.GenerateStream(request):
            times += [time.perf_counter()] * len(piece.token_ids)
            while len(running) < min(len(times), new - APART) // APART:
                # At any moment of the next tokens.
                running.append(asyncio.create_task(call(len(running) + 1, draw.uniform(0, 5e-3))))
        await asyncio.gather(*running)
    if len(times) != new:
        raise RuntimeError(f"{len(times)} tokens instead of {new}")
    return times, calls


def felt(times, calls):
    """What the tokens of one stream show of the calls beside it, in ms. A stall: by how much all gaps in which a call
    ran are longer than as many median gaps in which none did. Any moment falls more often into a long gap, so that it is
    not zero without a call either."""
    gaps = list(zip(times, times[1:]))
    lengths = [1e3 * (end - begin) for begin, end in gaps]
    hits = [[i for i, (begin, end) in enumerate(gaps) if begin < ended and began < end] for began, ended in calls]
    usual = statistics.median(length for i, length in enumerate(lengths) if not any(i in found for found in hits))
    # A call that began after the last token is in no gap.
    stalls = [sum(lengths[i] - usual for i in found) for found in hits if found]
    return {"gap, median": statistics.median(lengths), "gap, 99th percentile": numpy.percentile(lengths, 99),
            "gap, worst": max(lengths), "stall by a call, median": statistics.median(stalls),
            "stall by a call, worst": max(stalls), "whole stream, for each call": sum(lengths) / len(calls),
            "the call itself": 1e3 * statistics.median(ended - began for began, ended in calls)}


def swap(options, work):
    """What a running stream feels of an alias that moves between two adapters in memory: a stream of the base model,
    and one of the alias. In turn, at the same tokens, the alias is only read, and nothing is called. The calls are of
    the process that reads the stream: what they cost it is in the gaps, too."""
    folders = [f"{work}/adapters/random-{i}" for i in range(2)]
    server = bench.Evenkeel(options.binary, options.gguf, folders, work)
    server.generate(streams=2, prompt=16, new=4, seed=0, adapters=2)
    new, figures = 3 * APART if options.smoke else 512, {}
    for r in range(3 * options.rounds):
        for stream, name in {"base model": "", "the alias": "live"}.items():
            # Each is first in turn.
            for done in DONE[r % 3:] + DONE[:r % 3]:
                values = felt(*asyncio.run(beside(server, name, done, new, seed=r)))
                for figure, value in values.items():
                    figures.setdefault(f"{stream}: {figure}", {}).setdefault(done, []).append(value)
                say(stream, done, *(f"{value:.2f}" for value in values.values()))
    if gauge(server, "evenkeel_adapters_resident") != 2:
        raise RuntimeError("not both adapters are in memory")
    server.close()
    rows = []
    for title, by_done in figures.items():
        moved, *controls = (by_done[done] for done in DONE)
        more = ([a - b for a, b in zip(moved, control)] for control in controls)
        rows.append([title, *(f"{statistics.median(values):.2f}" for values in (moved, *controls, *more))])
    return ["a stream of, ms", *DONE, "moved less read", "moved less no call"], rows


def prompt(options, work):
    """Time to the first token after a prompt, and after the same prompt again."""
    server = bench.Evenkeel(options.binary, options.gguf, [], work, prefix_cache_bytes=128 << 20)
    length = 16 if options.smoke else 512
    server.generate(streams=2, prompt=16, new=4, seed=0)
    found = [[bench.first(server.generate(streams=1, prompt=length, new=1, seed=r), None) for _ in range(2)]
             for r in range(1, 3 * options.rounds + 1)]
    server.close()
    fresh, again = zip(*found)
    return (["first token, ms", "the prompt again", "the prompt before", "ratio"],
            [[f"after {length}", *peer.cells(again, fresh)]])


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "gguf", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the part of this name")
    parser.add_argument("--adapters", type=int, default=100, help="most adapters to register")
    parser.add_argument("--smoke", action="store_true", help="a few tokens each")
    options = parser.parse_args()
    work = os.path.abspath(options.work)
    if options.smoke:
        print("a few tokens each: the figures mean nothing")
    for part in (start, grpc, streams, adapters, swap, prompt):
        if options.only in part.__name__:
            head, rows = part(options, work)
            if rows:
                print("\n" + peer.table(head, rows), flush=True)


if __name__ == "__main__":
    main()
