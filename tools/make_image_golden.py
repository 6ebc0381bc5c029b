#!/usr/bin/env python3
"""Writes tests/golden/decode: small JPEG, PNG and WebP files of every variant that the decoder handles, each with the RGB
pixels that Pillow decodes (NAME.ppm). Needs: pip install pillow numpy. Run once; the results are committed."""
import io
import pathlib
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/decode"
W, H = 13, 9


def picture(channels=3, seed=1, w=W, h=H):
    y, x = np.mgrid[0:h, 0:w]
    g = np.random.default_rng(seed)
    planes = [127 + 100 * np.sin(x / (2.0 + c) + c) * np.cos(y / (1.5 + c)) for c in range(channels)]
    return (np.stack(planes, -1) + g.normal(0, 6, (h, w, channels))).clip(0, 255).astype(np.uint8)


def exif(orientation):
    e = Image.Exif()
    e[0x0112] = orientation
    return e.tobytes()


def save(name, image, **options):
    buffer = io.BytesIO()
    image.save(buffer, name.rsplit(".", 1)[1].replace("jpg", "jpeg"), **options)
    write(name, buffer.getvalue())


def write(name, data):
    (OUT / name).write_bytes(data)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    (OUT / (name + ".ppm")).write_bytes(b"P6\n%d %d\n255\n" % shown.size + shown.tobytes())
    print(name, len(data), shown.size)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w, h, depth, colour, rows, extra=b"", interlace=0):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def packed(values, depth):
    """Rows of small samples, filter type 0."""
    out = b""
    for row in values:
        bits = "".join(format(int(v), f"0{depth}b") for v in row)
        bits += "0" * (-len(bits) % 8)
        out += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return out


def adam7(values):
    """Interlaced rows of [h, w, c] bytes (RFC 2083, 2.6)."""
    out = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        for row in values[y0::dy, x0::dx]:
            if row.size:
                out += b"\0" + row.tobytes()
    return out


def pngs():
    rgb = picture()
    save("rgb.png", Image.fromarray(rgb))
    save("rgba.png", Image.fromarray(picture(4)))
    save("gray.png", Image.fromarray(picture(1)[..., 0]))
    save("gray_alpha.png", Image.fromarray(picture(2)))
    save("palette.png", Image.fromarray(rgb).quantize(16))
    save("palette_transparent.png", Image.fromarray(rgb).quantize(5), transparency=bytes([0, 128, 255]))
    save("gray_key.png", Image.fromarray(picture(1)[..., 0]), transparency=127)
    save("rgb_key.png", Image.fromarray(rgb), transparency=tuple(int(v) for v in rgb[0, 0]))
    for depth in (1, 2, 4):
        write(f"gray{depth}.png", png(W, H, depth, 0, packed(picture(1)[..., 0] >> (8 - depth), depth)))
    wide = (picture(4).astype(np.uint16) << 8) + picture(4, 2)
    for name, colour, n in (("gray16", 0, 1), ("rgb16", 2, 3), ("gray_alpha16", 4, 2), ("rgba16", 6, 4)):
        rows = b"".join(b"\0" + wide[y, :, :n].astype(">u2").tobytes() for y in range(H))
        write(name + ".png", png(W, H, 16, colour, rows))
    write("gray16_dark.png", png(W, H, 16, 0, b"".join(b"\0" + (wide[y, :, :1] % 300).astype(">u2").tobytes() for y in range(H))))
    write("interlaced.png", png(W, H, 8, 2, adam7(rgb), interlace=1))
    write("interlaced_gray16.png", png(W, H, 16, 0, adam7(wide[..., :1].astype(">u2")), interlace=1))
    for o in range(1, 9):
        save(f"exif{o}.png", Image.fromarray(rgb), exif=exif(o))
    rows = b"".join(b"\0" + rgb[y].tobytes() for y in range(H))
    late = png(W, H, 8, 2, rows)
    late = late[:-12] + chunk(b"eXIf", exif(6)[6:]) + late[-12:]
    write("exif_after_pixels.png", late)
    info = PngImagePlugin.PngInfo()
    data = exif(8)[6:]
    info.add_text("Raw profile type exif", "\nexif\n%8d\n%s\n" % (len(data), data.hex()), zip=True)
    save("exif_as_text.png", Image.fromarray(rgb), pnginfo=info)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    save("xmp.png", Image.fromarray(rgb), pnginfo=info)


def jpegs():
    rgb = Image.fromarray(picture(w=37, h=21))
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        save(f"rgb_{name}.jpg", rgb, subsampling=sampling, quality=80)
    save("progressive.jpg", rgb, progressive=True, quality=70)
    save("gray.jpg", Image.fromarray(picture(1)[..., 0]))
    save("cmyk.jpg", Image.fromarray(picture(4), "CMYK"), quality=90)
    for o in (1, 3, 6, 8):
        save(f"exif{o}.jpg", Image.fromarray(picture()), exif=exif(o))
    big = exif(5)
    save("exif_big_endian.jpg", Image.fromarray(picture()), exif=b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 7, 0, 0))
    save("xmp.jpg", Image.fromarray(picture()), xmp=b"<x:xmpmeta><tiff:Orientation>8</tiff:Orientation></x:xmpmeta>")


def webps():
    save("lossy.webp", Image.fromarray(picture(w=37, h=21)), quality=70)
    save("lossless.webp", Image.fromarray(picture()), lossless=True)
    save("lossy_alpha.webp", Image.fromarray(picture(4, w=37, h=21)), quality=70)
    save("lossless_alpha.webp", Image.fromarray(picture(4)), lossless=True, exact=True)
    save("exif6.webp", Image.fromarray(picture()), lossless=True, exif=exif(6))
    save("xmp.webp", Image.fromarray(picture()), lossless=True, xmp=b'<x:xmpmeta tiff:Orientation="3"></x:xmpmeta>')
    save("animated.webp", Image.fromarray(picture()), lossless=True, save_all=True, append_images=[Image.fromarray(picture(seed=5))], duration=50)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    pngs()
    jpegs()
    webps()
    sys.exit(0)
