#!/usr/bin/env python3
"""Makes small images of every kind, sound and faulty, with the RGB bytes that Pillow 13.0.0 reads from the sound ones.

Usage: python3 make.py, with Pillow installed. `expected.json` has per sound file its size and RGB bytes (hexadecimal), as
transformers 5 converts it: transparency on white; null stands for a file that Pillow reads and the server refuses.
"""

import json
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 11, 7


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, rows, more=b""):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows), 9))
    return b"\x89PNG\r\n\x1a\n" + header + more + data + chunk(b"IEND", b"")


def picture(mode="RGB", shift=0):
    """Soft gradients: what a lossy format keeps."""
    image = Image.new("RGB", (WIDTH, HEIGHT))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            image.putpixel((x, y), ((20 * x + shift) % 256, 30 * y + 10, 250 - 12 * x - 9 * y))
    if mode == "RGBA":
        image = image.convert("RGBA")
        for y in range(HEIGHT):
            for x in range(WIDTH):
                image.putpixel((x, y), image.getpixel((x, y))[:3] + ((x * 25 + y * 3) % 256,))
        return image
    return image.convert(mode)


def sixteen(channels):
    values = [0, 1, 127, 128, 255, 256, 257, 0x1234, 0x7FFF, 0x8000, 0xFF7F, 0xFF80, 0xFFFF, 0x00FF, 0x0180, 0xABCD]
    rows = []
    for y in range(HEIGHT):
        words = [values[(3 * y + x + 5 * c) % 16] for x in range(WIDTH) for c in range(channels)]
        rows.append(struct.pack(f">{len(words)}H", *words))
    return rows


def sound():
    save = lambda name, image, **how: image.save(HERE / name, **how)
    save("rgb.png", picture())
    save("grey.png", picture("L"))
    save("rgba.png", picture("RGBA"))
    save("grey_alpha.png", picture("RGBA").convert("LA"))
    save("palette.png", picture().quantize(16))
    save("palette_alpha.png", picture().quantize(16), transparency=3)
    save("bits.png", picture("L").convert("1"))
    (HERE / "rgb_key.png").write_bytes(
        png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))
    )
    (HERE / "rgb_16.png").write_bytes(png(WIDTH, HEIGHT, 16, 2, sixteen(3)))
    (HERE / "grey_16.png").write_bytes(png(WIDTH, HEIGHT, 16, 0, sixteen(1)))
    (HERE / "grey_alpha_16.png").write_bytes(png(WIDTH, HEIGHT, 16, 4, sixteen(2)))
    (HERE / "rgba_16.png").write_bytes(png(WIDTH, HEIGHT, 16, 6, sixteen(4)))
    save("animated.png", picture(), save_all=True, append_images=[picture(shift=90)])
    save("rgb.jpg", picture(), quality=90)
    save("full_chroma.jpg", picture(), quality=95, subsampling=0)
    save("progressive.jpg", picture(), quality=90, progressive=True)
    save("grey.jpg", picture("L"), quality=90)
    turned = Image.Exif()
    turned[0x0112] = 6
    save("turned.jpg", picture(), quality=90, exif=turned)
    save("lossless.webp", picture(), lossless=True)
    save("rgba.webp", picture("RGBA"), lossless=True, exact=True)
    save("lossy.webp", picture(), quality=90)
    save("lossy_alpha.webp", picture("RGBA"), quality=90)
    save("animated.webp", picture(), lossless=True, save_all=True, append_images=[picture(shift=90)])
    save("cmyk.jpg", picture("CMYK"), quality=90)


def faulty():
    picture().save(HERE / "other.gif")
    picture().save(HERE / "other.tif")
    picture().save(HERE / "other.bmp")
    (HERE / "other.txt").write_text("<svg/>")
    for name in ("rgb.png", "rgb.jpg", "lossless.webp"):
        data = (HERE / name).read_bytes()
        (HERE / f"truncated_{name}").write_bytes(data[:-14])
    (HERE / "huge.png").write_bytes(png(100_000, 100_000, 8, 2, [b""]))
    (HERE / "empty.png").write_bytes(png(0, 0, 8, 2, [b""]))
    # A start of frame of 65535 x 65535 and no data.
    frame = struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
    (HERE / "huge.jpg").write_bytes(b"\xff\xd8\xff\xc0" + frame + b"\xff\xd9")
    damaged = bytearray((HERE / "rgb.png").read_bytes())
    damaged[-20] ^= 0xFF
    (HERE / "damaged.png").write_bytes(damaged)


def on_white(image):
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255)), image).convert("RGB")


def main():
    warnings.simplefilter("ignore")
    sound()
    expected = {}
    for path in sorted(HERE.iterdir()):
        if path.suffix in (".png", ".jpg", ".webp") and path.name.split("_")[0].split(".")[0] not in FAULTY:
            with Image.open(path) as image:
                rgb = on_white(image).copy()
            expected[path.name] = None if path.name == "cmyk.jpg" else {"size": rgb.size, "rgb": rgb.tobytes().hex()}
    faulty()
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in expected.items())
    (HERE / "expected.json").write_text("{\n" + lines + "\n}\n")


FAULTY = ("truncated", "huge", "empty", "damaged")

if __name__ == "__main__":
    main()
