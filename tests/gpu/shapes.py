"""Models of random weights at the shapes of published ones, tokenizers of bytes for them, and adapters.

Writes transformers folders (bf16, sharded above 4 GB) and PEFT folders, drawn where the GPU is; nothing is downloaded.
Matrices are drawn with the variance 1/inputs, so that activations keep their size through any depth. Every byte of a
text is one token: id 3 + its place in the alphabet of GPT-2's bytes; `<unk>`, `<s>`, `</s>` are 0, 1, 2.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from safetensors.torch import save_file

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHARD = 4 << 30
END_OF_TEXT = 2


def shape(hidden, inner, layers, heads, kv_heads, vocab, context, **other):
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=kv_heads, vocab_size=vocab, max_position_embeddings=context,
                rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False,
                bos_token_id=1, eos_token_id=END_OF_TEXT, torch_dtype="bfloat16") | other


MISTRAL = dict(architectures=["MistralForCausalLM"], model_type="mistral")
SHAPES = {
    "llama-2-7b": shape(4096, 11008, 32, 32, 32, 32000, 4096),
    "mistral-7b": shape(4096, 14336, 32, 32, 8, 32000, 32768, sliding_window=4096, **MISTRAL),
    "smollm2-135m": shape(576, 1536, 30, 9, 3, 49152, 8192, rope_theta=100000.0, tie_word_embeddings=True),
    # Those below are of nobody: to compare numbers, and to rehearse on a CPU.
    "middle": shape(512, 1408, 6, 8, 2, 4096, 2048),
    "tiny": shape(64, 160, 2, 4, 2, 512, 2560),
    "tiny-mistral": shape(64, 160, 2, 4, 2, 512, 2560, sliding_window=64, **MISTRAL),
}


def config(name):
    """The configuration of a shape, as `config.json` has it."""
    return dict(architectures=["LlamaForCausalLM"], model_type="llama") | SHAPES[name]


def tensors(name):
    """Tensors of a shape by transformers' names, in the order of the pass."""
    of = SHAPES[name]
    hidden, inner = of["hidden_size"], of["intermediate_size"]
    head = hidden // of["num_attention_heads"]
    keys = of["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (of["vocab_size"], hidden)
    for layer in range(of["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        for site, shape in sites(hidden, inner, keys).items():
            part = "mlp" if site in LINEAR[4:] else "self_attn"
            yield f"{at}{part}.{site}.weight", shape
        yield at + "post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not of["tie_word_embeddings"]:
        yield "lm_head.weight", (of["vocab_size"], hidden)


def sites(hidden, inner, keys):
    """Linear layers of a block, `(outputs, inputs)`."""
    return dict(q_proj=(hidden, hidden), k_proj=(keys, hidden), v_proj=(keys, hidden), o_proj=(hidden, hidden),
                gate_proj=(inner, hidden), up_proj=(inner, hidden), down_proj=(hidden, inner))


def parameters(name, read_in_a_step=False):
    """Number of weights; on demand of those only that a decoding step reads: rows of a table of its own are few."""
    count = sum(torch.Size(shape).numel() for _, shape in tensors(name))
    of = SHAPES[name]
    table = 0 if of["tie_word_embeddings"] else of["vocab_size"] * of["hidden_size"]
    return count - table if read_in_a_step else count


def kv_bytes(name):
    """Bytes of keys and values of a token in bf16."""
    of = SHAPES[name]
    head = of["hidden_size"] // of["num_attention_heads"]
    return 2 * 2 * of["num_hidden_layers"] * of["num_key_value_heads"] * head


def write_model(name, folder, seed=0):
    """Writes the folder of a shape."""
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config(name), file, indent=1)
    write_tokenizer(folder, SHAPES[name]["vocab_size"])
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shards, size = [{}], 0
    for tensor, shape in tensors(name):
        value = torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)
        value = value * shape[1] ** -0.5 if len(shape) == 2 else 1 + 0.1 * value
        if size + 2 * value.numel() > SHARD:
            shards.append({})
            size = 0
        shards[-1][tensor] = value.cpu()
        size += 2 * value.numel()
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        where = {tensor: file for file, shard in zip(names, shards) for tensor in shard}
        total = sum(2 * value.numel() for shard in shards for value in shard.values())
        with open(f"{folder}/model.safetensors.index.json", "w") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": where}, file)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: save_file(pair[1], f"{folder}/{pair[0]}", metadata={"format": "pt"}),
                      zip(names, shards)))


def alphabet():
    """GPT-2's visible character of each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def ids_of(text):
    """Ids of a text; no end is added."""
    return [3 + byte for byte in text.encode()]


def write_tokenizer(folder, vocab):
    """Writes a tokenizer whose tokens are bytes, filled up with entries that no text becomes."""
    special = ["<unk>", "<s>", "</s>"]
    entries = [*special, *(character for _, character in sorted(alphabet().items()))]
    entries += [f"filler{i}" for i in range(len(entries), vocab)]
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    content = dict(version="1.0", truncation=None, padding=None, normalizer=None, post_processor=None,
                   added_tokens=[dict(id=i, content=text, **flags) for i, text in enumerate(special)],
                   pre_tokenizer=level, decoder=level,
                   model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
                              end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False,
                              vocab={text: i for i, text in enumerate(entries)}, merges=[]))
    with open(f"{folder}/tokenizer.json", "w") as file:
        json.dump(content, file)
    with open(f"{folder}/tokenizer_config.json", "w") as file:
        json.dump(dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>",
                       unk_token="<unk>", clean_up_tokenization_spaces=False), file)


def write_adapter(name, folder, seed, rank=16, modules=LINEAR):
    """Writes a PEFT adapter in bf16 with an effect, alpha twice the rank."""
    os.makedirs(folder, exist_ok=True)
    generator = torch.Generator(DEVICE).manual_seed(1000 + seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.bfloat16)
    values = {}
    for tensor, shape in tensors(name):
        module = tensor.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in modules:
            outputs, inputs = shape
            at = f"base_model.model.{module}"
            values[f"{at}.lora_A.weight"] = (draw(rank, inputs) * inputs ** -0.5).cpu()
            values[f"{at}.lora_B.weight"] = (draw(outputs, rank) * 0.02).cpu()
    save_file(values, f"{folder}/adapter_model.safetensors", metadata={"format": "pt"})
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(dict(peft_type="LORA", task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
                       bias="none", target_modules=list(modules), base_model_name_or_path=None), file)
