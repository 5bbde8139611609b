"""What evenkeel costs by itself: its start, gRPC, more streams, more registered adapters, a swap, a prompt that comes
again.

No peer computes here; a ratio is of evenkeel's own figures in the same round. usage: run.sh --alone [--rounds N]
[--adapters N] [--only TEXT], TEXT one of start, grpc, streams, adapters, swap, prompt.
"""

import argparse
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
from evenkeel.v1 import adapter_pb2
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


def engine(options, *more):
    """What is measured by a client in the server's process: cargo builds what prints the table itself."""
    smoke = ["smoke"] if options.smoke else []
    command = ["cargo", "bench", "--bench", "engine", "--", options.gguf, str(3 * options.rounds), *smoke, *more]
    subprocess.run(command, check=True)
    return None, []


def grpc(options, work):
    """Streams through gRPC against the engine alone."""
    return engine(options)


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


def swap(options, work):
    """What a running stream feels of an alias that moves: as with gRPC."""
    return engine(options, f"adapters={work}/adapters")


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
