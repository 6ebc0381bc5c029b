#!/usr/bin/env python3
"""Writes tests/golden/image_corpus: bad and extreme picture files. The server must refuse those in `refused/` with one sentence
and answer about those in `shown/`, both without much work. Needs Pillow and pillow-heif. The files are in the repository; this script
documents them.

usage: tools/make_image_corpus.py [FOLDER]
"""
import argparse
import io
import pathlib
import struct
import zlib

import pillow_heif
from PIL import Image, ImageDraw

pillow_heif.register_heif_opener()

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def header(width, height, depth=8, color=2):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def zeros(count):
    """`count` zeros as zlib stores them, made piece by piece."""
    pack = zlib.compressobj(9)
    out, piece = [], bytes(1 << 20)
    for left in range(count, 0, -len(piece)):
        out.append(pack.compress(piece[:left]))
    return b"".join(out) + pack.flush()


def png(width, height, depth=8, color=2, rows=None, before=b""):
    """A PNG of zeros: black, or the first color."""
    per_pixel = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = 1 + (width * depth * per_pixel + 7) // 8
    return (MAGIC + header(width, height, depth, color) + before +
            chunk(b"IDAT", zeros(row * (height if rows is None else rows))) + chunk(b"IEND", b""))


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width=64, height=48):
    image = Image.new("RGB", (width, height), "navy")
    ImageDraw.Draw(image).ellipse((width / 4, height / 4, 3 * width / 4, 3 * height / 4), fill="orange")
    return image


def edited(data, at, replacement):
    return data[:at] + replacement + data[at + len(replacement):]


def refused():
    good = saved(picture(), "PNG")
    jpeg = saved(picture(), "JPEG")
    webp = saved(picture(), "WEBP")
    yield "empty.png", b""
    yield "one_byte.png", b"\x89"
    yield "nothing_but_zeros.png", bytes(4096)
    yield "text.png", b"This is no picture, whatever its name says.\n" * 20
    yield "page.png", b"<!doctype html><html><body><img src=x></body></html>"
    yield "tiff.tif", saved(picture(), "TIFF")
    yield "ico.ico", saved(picture(32, 32), "ICO", sizes=[(16, 16)])
    yield "svg.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    yield "entities.svg", b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    yield "pdf.pdf", b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF"
    yield "jpeg2000.jp2", b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100)
    yield "avif.avif", b"\x00\x00\x00\x1cftypavif" + bytes(100)
    yield "magic_alone.png", MAGIC
    yield "magic_of_a_jpeg.png", b"\xff\xd8\xff" + good[3:]
    yield "line_ends_translated.png", good.replace(b"\r\n", b"\n")
    yield "no_header.png", MAGIC + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")
    yield "no_pixels.png", MAGIC + header(8, 8) + chunk(b"IEND", b"")
    yield "too_few_rows.png", png(64, 64, rows=10)
    yield "wrong_checksum_of_header.png", edited(good, 29, b"\0\0\0\0")
    yield "damaged_pixels.png", edited(good, good.index(b"IDAT") + 12, b"\xff" * 8)
    yield "no_width.png", png(0, 5, rows=5)
    yield "no_height.png", png(5, 0, rows=5)
    yield "side_past_the_limit.png", png(70000, 1)
    yield "60000_squared.png", MAGIC + header(60000, 60000) + chunk(b"IDAT", zeros(1 << 20)) + chunk(b"IEND", b"")
    yield "bomb_20000_squared_1_bit.png", png(20000, 20000, depth=1, color=0)  # 50 MB of pixels in 49 KB
    yield "bomb_20000_squared_16_bit.png", png(20000, 20000, depth=16, color=6, rows=100)
    yield "8000_squared_without_pixels.png", MAGIC + header(8000, 8000) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    yield "claims_a_chunk_of_2_gb.png", MAGIC + header(8, 8) + struct.pack(">I", 0x7fffffff) + b"IDAT" + bytes(100)
    yield "palette_missing.png", png(8, 8, color=3)
    yield "impossible_depth.png", MAGIC + header(8, 8, depth=3) + chunk(b"IDAT", zeros(200)) + chunk(b"IEND", b"")
    yield "half.png", good[:len(good) // 2]
    yield "half.jpg", jpeg[:len(jpeg) // 2]
    yield "half.webp", webp[:len(webp) // 2]
    yield "start_alone.jpg", jpeg[:2] + b"\xff\xd9"
    yield "tables_alone.jpg", jpeg[:jpeg.index(b"\xff\xc0")] + b"\xff\xd9"
    frame = jpeg.index(b"\xff\xc0")
    yield "65500_squared.jpg", edited(jpeg, frame + 5, struct.pack(">HH", 65500, 65500))
    yield "no_height.jpg", edited(jpeg, frame + 5, struct.pack(">HH", 0, 64))
    progressive = saved(picture(), "JPEG", progressive=True)
    yield "65500_squared_progressive.jpg", edited(progressive, progressive.index(b"\xff\xc2") + 5, struct.pack(">HH", 65500, 65500))
    yield "lying_length.webp", edited(webp, 4, struct.pack("<I", 0x7fffffff))
    yield "chunks_missing.webp", b"RIFF\x04\x00\x00\x00WEBP"
    yield "canvas_16384_squared.webp", (b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" +
                                        b"\xff\x3f\x00" + b"\xff\x3f\x00")


def shown():
    yield "gif.gif", saved(picture(), "GIF")
    yield "animated.gif", saved(picture(), "GIF", save_all=True, append_images=[picture().rotate(90)])
    yield "bmp.bmp", saved(picture(), "BMP")
    number = Image.open(ROOT / "tests/golden/demo_eval/images/000.png").convert("RGB")
    yield "number.gif", saved(number.quantize(256), "GIF")
    yield "number.bmp", saved(number.quantize(16), "BMP")
    yield "number.heic", saved(number, "HEIF", quality=95)
    yield "number.avif", saved(number, "AVIF", quality=95)
    yield "one_pixel.png", png(1, 1)
    yield "one_pixel.jpg", saved(Image.new("RGB", (1, 1), "red"), "JPEG")
    yield "one_pixel.webp", saved(Image.new("RGB", (1, 1), "red"), "WEBP")
    yield "3000x7.png", saved(picture(3000, 7), "PNG")
    yield "7x3000.png", saved(picture(7, 3000), "PNG")
    yield "8000_squared_1_bit.png", png(8000, 8000, depth=1, color=0)  # 192 MB as RGB, 8 KB here: within the limit
    yield "16_bit.png", png(33, 17, depth=16, color=6)
    yield "palette.png", saved(picture().convert("P"), "PNG")
    yield "cmyk.jpg", saved(picture().convert("CMYK"), "JPEG")
    yield "gray.jpg", saved(picture().convert("L"), "JPEG")
    yield "animated.webp", saved(picture(), "WEBP", save_all=True, append_images=[picture().rotate(90)])
    jpeg = saved(picture(), "JPEG")
    for name, block in {
            "exif_garbage": b"Exif\0\0" + bytes(range(256)), "exif_cut": b"Exif\0\0II*\0",
            "exif_directory_far_away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
            "exif_of_65535_entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\x00" * 20,
            "exif_orientation_999": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\xe7\x03\0\0"}.items():
        yield name + ".jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
    yield "comments.jpg", jpeg[:2] + comment + jpeg[2:]
    # Text and color profiles that would unpack to 100 MB; they are of no use here.
    bomb = zeros(100 << 20)
    yield "text_bomb.png", png(8, 8, before=chunk(b"zTXt", b"a\0\0" + bomb))
    yield "profile_bomb.png", png(8, 8, before=chunk(b"iCCP", b"a\0\0" + bomb))
    yield "many_chunks.png", png(8, 8, before=chunk(b"tEXt", b"a\0b") * 3000)
    yield "data_after_the_end.png", saved(picture(), "PNG") + bytes(10000)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=pathlib.Path, default=ROOT / "tests/golden/image_corpus")
    folder = parser.parse_args().output
    for kind, files in (("refused", refused()), ("shown", shown())):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for name, data in files:
            (folder / kind / name).write_bytes(data)
            print(f"{kind}/{name}: {len(data)} bytes")


if __name__ == "__main__":
    main()
