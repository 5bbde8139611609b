"""llama.cpp through the low-level API of llama-cpp-python: one context, all streams in one batch, no HTTP.

usage: peer_llama_cpp.py MODEL.gguf ADAPTER_DIR WORK_DIR. That is what llama-server could reach at best.
"""

import ctypes
import json
import os
import sys
import time

import gguf
import llama_cpp as lib
import numpy as np
from safetensors.numpy import load_file

import peer

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def convert(adapter_dir, path, heads, kv_heads):
    """Writes a PEFT adapter as a GGUF adapter; rows of q and k are permuted as llama.cpp stores them."""
    config = json.load(open(f"{adapter_dir}/adapter_config.json"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, weight in load_file(f"{adapter_dir}/adapter_model.safetensors").items():
        parts = name.removeprefix("base_model.model.model.layers.").split(".")
        layer, module, side = parts[0], ".".join(parts[1:3]), "a" if "lora_A" in name else "b"
        count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(module)
        if side == "b" and count:
            rows, rank = weight.shape
            weight = weight.reshape(count, 2, rows // count // 2, rank).swapaxes(1, 2).reshape(rows, rank)
        writer.add_tensor(f"blk.{layer}.{NAMES[module]}.weight.lora_{side}", np.ascontiguousarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    def __init__(self, model, adapter_dir, work):
        lib.llama_backend_init()
        self.log = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.log, ctypes.c_void_p(0))
        params = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(model.encode(), params)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.work = work
        self.adapter = self._read(self._converted(adapter_dir))

    def _converted(self, adapter_dir):
        path = os.path.join(self.work, f"{os.path.basename(adapter_dir)}.gguf")
        convert(adapter_dir, path, lib.llama_model_n_head(self.model), lib.llama_model_n_head_kv(self.model))
        return path

    def _read(self, path):
        adapter = lib.llama_adapter_lora_init(self.model, path.encode())
        if not adapter:
            raise RuntimeError("llama.cpp refuses the adapter")
        return adapter

    def _use(self, context, adapter):
        loras = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
        lib.llama_set_adapters_lora(context, loras, 1, (ctypes.c_float * 1)(1.0))

    def load(self, directory):
        """Seconds to load another adapter, already in GGUF, then to make it the active one of a context."""
        path = self._converted(directory)
        context = self._context(1, 64)
        self._use(context, self.adapter)
        begin = time.perf_counter()
        second = self._read(path)
        loaded = time.perf_counter()
        self._use(context, second)
        swapped = time.perf_counter()
        lib.llama_free(context)
        lib.llama_adapter_lora_free(second)
        return {"load": loaded - begin, "swap": swapped - loaded}

    def memory(self):
        return {"peak": peer.peak_bytes()}

    def _context(self, streams, length):
        params = lib.llama_context_default_params()
        params.n_ctx = streams * length
        params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, streams
        params.n_threads = params.n_threads_batch = 2
        return lib.llama_init_from_model(self.model, params)

    def generate(self, streams, prompt, new, seed, adapters=0):
        context = self._context(streams, prompt + new + 32)
        if adapters:
            self._use(context, self.adapter)
        batch = lib.llama_batch_init(max(2048, streams), 0, 1)
        ids = peer.prompts(streams, prompt, self.vocab, seed)
        begin = time.perf_counter()
        token = [0] * streams
        rows = [(s, p) for s in range(streams) for p in range(prompt)]
        for start in range(0, len(rows), 2048):
            chunk = rows[start : start + 2048]
            self._decode(context, batch, [(ids[s][p], p, s, p == prompt - 1) for s, p in chunk])
            for i, (s, p) in enumerate(chunk):
                if p == prompt - 1:
                    token[s] = self._best(context, i)
        first = time.perf_counter()
        for step in range(new - 1):
            self._decode(context, batch, [(token[s], prompt + step, s, True) for s in range(streams)])
            token = [self._best(context, s) for s in range(streams)]
        end = time.perf_counter()
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        return {"first": first - begin, "total": end - begin, "after": streams * (new - 1)}

    def _decode(self, context, batch, rows):
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _best(self, context, row):
        logits = lib.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())


if __name__ == "__main__":
    peer.serve(LlamaCpp(*sys.argv[1:4]))
