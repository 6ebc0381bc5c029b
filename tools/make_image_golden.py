#!/usr/bin/env python3
"""Writes tests/golden/decode: small JPEG, PNG, WebP, GIF and BMP files of every variant that the decoder handles, each with the RGB
pixels that Pillow decodes (NAME.ppm); and tests/golden/decode_heif, the same for HEIC and AVIF. Needs: pip install pillow
pillow-heif numpy. Run once; the results are committed."""
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


def gif(screen, blocks, palette=None, background=0):
    """A GIF of these blocks; `palette`: bytes of a power of two of colours."""
    flags = 0 if palette is None else 0x80 | (len(palette) // 3).bit_length() - 2
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, background, 0) + (palette or b"") + blocks + b";"


def gif_frame(x, y, pixels, depth, palette=None, interlaced=False, transparent=None):
    """A frame whose codes are never longer than depth + 1 bits: the table is cleared often."""
    h, w = pixels.shape
    order = [r for a, s in ((0, 8), (4, 8), (2, 4), (1, 2)) for r in range(a, h, s)] if interlaced else range(h)
    clear, out, count, bits, held = 1 << depth, bytearray(), 0, 0, 0

    def put(code):
        nonlocal bits, held
        held |= code << bits
        bits += depth + 1
        while bits >= 8:
            out.append(held & 255)
            held >>= 8
            bits -= 8

    for row in order:
        for value in pixels[row]:
            if count % ((1 << depth) - 2) == 0:
                put(clear)
            put(int(value))
            count += 1
    put(clear + 1)
    if bits:
        out.append(held)
    data = b"".join(bytes([len(out[i:i + 255])]) + bytes(out[i:i + 255]) for i in range(0, len(out), 255)) + b"\0"
    head = b"" if transparent is None else b"!\xf9\4" + bytes([1, 5, 0, transparent]) + b"\0"
    flags = (0x40 if interlaced else 0) | (0 if palette is None else 0x80 | (len(palette) // 3).bit_length() - 2)
    return head + b"," + struct.pack("<HHHHB", x, y, w, h, flags) + (palette or b"") + bytes([depth]) + data


def gifs():
    rgb = Image.fromarray(picture(w=37, h=21))
    save("plain.gif", rgb.quantize(16))
    save("interlaced.gif", rgb.quantize(100), interlace=1)
    save("transparent.gif", rgb.quantize(16), transparency=3)
    save("animated.gif", rgb.quantize(16), save_all=True, append_images=[Image.fromarray(picture(w=37, h=21, seed=4)).quantize(16)])
    g = np.random.default_rng(3)
    colours, other = g.integers(0, 256, 48, dtype=np.uint8).tobytes(), g.integers(0, 256, 24, dtype=np.uint8).tobytes()
    small = g.integers(0, 8, (5, 7))
    write("frame_in_canvas.gif", gif((13, 9), gif_frame(3, 2, small, 3), colours, 5))
    write("frame_in_canvas_transparent.gif", gif((13, 9), gif_frame(3, 2, small, 3, transparent=6), colours, 5))
    write("frame_outside_screen.gif", gif((5, 5), gif_frame(2, 1, small, 3), colours))
    write("frame_with_palette.gif", gif((7, 5), gif_frame(0, 0, small, 3, other), colours))
    write("frame_interlaced.gif", gif((7, 5), gif_frame(0, 0, small, 3, interlaced=True), colours))
    write("no_palette.gif", gif((7, 5), gif_frame(0, 0, small * 30, 8)))
    comment = b"!\xfe\5hello\0!\xff\x0bNETSCAPE2.0\3\1\0\0\0"
    write("comment.gif", gif((7, 5), comment + gif_frame(0, 0, small, 3), colours))


def bmp(w, h, bits, rows, compression=0, palette=b"", masks=b"", size=40, colours=0):
    if size == 12:
        info = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", size, w, h, 1, bits, compression, len(rows), 2835, 2835, colours, 0)
        info += (masks if size > 40 else b"").ljust(size - 40, b"\0") + (masks if size == 40 else b"")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def bmp_rows(values, bits):
    """Rows from the bottom, of numbers of this many bits, padded to 4 bytes."""
    out = b""
    for row in values[::-1]:
        if bits < 8:
            text = "".join(format(int(v), f"0{bits}b") for v in row)
            text += "0" * (-len(text) % 8)
            data = int(text, 2).to_bytes(len(text) // 8, "big")
        else:
            data = b"".join(int(v).to_bytes(bits // 8, "little") for v in row)
        out += data + b"\0" * (-len(data) % 4)
    return out


def bmps():
    rgb = picture()
    save("rgb.bmp", Image.fromarray(rgb))
    save("palette.bmp", Image.fromarray(rgb).quantize(200))
    save("gray.bmp", Image.fromarray(picture(1)[..., 0]))
    save("rgba.bmp", Image.fromarray(picture(4)))
    g = np.random.default_rng(7)
    for bits in (1, 4, 8):
        values = g.integers(0, 1 << bits, (H, W))
        colours = g.integers(0, 256, (1 << bits, 4), dtype=np.uint8)
        colours[:, 3] = 0
        write(f"palette{bits}.bmp", bmp(W, H, bits, bmp_rows(values, bits), palette=colours.tobytes()))
        write(f"core{bits}.bmp", bmp(W, H, bits, bmp_rows(values, bits), palette=colours[:, :3].tobytes(), size=12))
    words, longs = g.integers(0, 1 << 16, (H, W)), g.integers(0, 1 << 32, (H, W))
    write("16.bmp", bmp(W, H, 16, bmp_rows(words & 0x7fff, 16)))
    write("565.bmp", bmp(W, H, 16, bmp_rows(words, 16), 3, masks=struct.pack("<III", 0xf800, 0x7e0, 0x1f)))
    write("32.bmp", bmp(W, H, 32, bmp_rows(longs, 32)))
    write("32_masks.bmp", bmp(W, H, 32, bmp_rows(longs, 32), 3, masks=struct.pack("<III", 0xff0000, 0xff00, 0xff)))
    write("32_rgbx.bmp", bmp(W, H, 32, bmp_rows(longs, 32), 3, masks=struct.pack("<III", 0xff000000, 0xff0000, 0xff00)))
    v5 = struct.pack("<IIII", 0xff0000, 0xff00, 0xff, 0xff000000)
    write("v5.bmp", bmp(W, H, 32, bmp_rows(longs, 32), 3, masks=v5, size=124))
    top = b"".join(bytes(r[:, ::-1].tobytes()) + b"\0" * (-3 * W % 4) for r in rgb)
    write("top_down.bmp", bmp(W, -H, 24, top))
    colours = g.integers(0, 256, (16, 4), dtype=np.uint8).tobytes()
    end, full = b"\0\0", b"\x0d\3\0\0"
    rle8 = b"\5\1\3\2" + end + b"\0\4\7\6\5\4" + end + b"\0\3\1\2\3\0" + end + b"\2\5\0\2\2\1\2\1" + end + b"\x20\x0e" + end
    write("rle8.bmp", bmp(W, H, 8, rle8 + 3 * full + b"\0\1", 1, palette=colours, colours=16))
    rle4 = b"\5\x12\4\x34" + end + b"\0\5\x12\x34\x50\0" + end + b"\0\4\x56\x78" + end
    write("rle4.bmp", bmp(W, H, 4, rle4 + 6 * b"\x0d\xef\0\0" + b"\0\1", 2, palette=colours))


def boxes(data, at=0, end=None):
    """(kind, content) of the boxes in data[at:end]."""
    end = len(data) if end is None else end
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8:at + size]
        at += size


def box(kind, *content):
    content = b"".join(content)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def coded_picture(file):
    """The configuration and the data of the first coded picture of a HEIC file."""
    meta = dict(boxes(dict(boxes(file))[b"meta"], 4))
    configuration = dict(boxes(dict(boxes(meta[b"iprp"]))[b"ipco"]))[b"hvcC"]
    return configuration, dict(boxes(file))[b"mdat"]


def grid(tiles, across, down, size, canvas):
    """A HEIC file whose picture is made of tiles, as telephones write it: of one configuration, each an item."""
    parts = [coded_picture(tile) for tile in tiles]
    n, first = len(parts), 1
    shape = struct.pack(">BBBBHH", 0, 0, down - 1, across - 1, *canvas)
    info = [struct.pack(">IHH4sx", 2 << 24, first + i, 0, b"hvc1") for i in range(n)]
    info.append(struct.pack(">IHH4sx", 2 << 24, first + n, 0, b"grid"))
    properties = box(b"ipco", *[box(b"hvcC", c) for c, _ in parts], box(b"ispe", struct.pack(">III", 0, *size)),
                     box(b"ispe", struct.pack(">III", 0, *canvas)))
    uses = b"".join(struct.pack(">HBBB", first + i, 2, 0x80 | i + 1, n + 1) for i in range(n))
    uses += struct.pack(">HBB", first + n, 1, n + 2)
    refers = box(b"dimg", struct.pack(">HH", first + n, n), *[struct.pack(">H", first + i) for i in range(n)])
    ftyp = box(b"ftyp", b"heic", struct.pack(">I", 0), b"mif1heic")

    def whole(start):
        places = b""
        for i in range(n):
            places += struct.pack(">HHHHII", first + i, 0, 0, 1, start, len(parts[i][1]))
            start += len(parts[i][1])
        places += struct.pack(">HHHHII", first + n, 1, 0, 1, 0, len(shape))
        return box(b"meta", struct.pack(">I", 0), box(b"hdlr", struct.pack(">II4s12xx", 0, 0, b"pict")),
                   box(b"pitm", struct.pack(">IH", 0, first + n)),
                   box(b"iinf", struct.pack(">IH", 0, n + 1), *[box(b"infe", one) for one in info]),
                   box(b"iref", struct.pack(">I", 0), refers),
                   box(b"iprp", properties, box(b"ipma", struct.pack(">II", 0, n + 1), uses)),
                   box(b"iloc", struct.pack(">IBBH", 1 << 24, 0x44, 0, n + 1), places), box(b"idat", shape))

    head = ftyp + whole(0)
    return ftyp + whole(len(head) + 8) + box(b"mdat", *[data for _, data in parts])


def heifs(folder):
    import pillow_heif
    pillow_heif.register_heif_opener()
    global OUT
    OUT = folder
    OUT.mkdir(parents=True, exist_ok=True)

    def made(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    rgb, rgba = Image.fromarray(picture(w=64, h=40)), Image.fromarray(picture(4, w=64, h=40))
    write("lossless.heic", made(rgb, "HEIF", quality=-1, chroma=444, matrix_coefficients=0))
    write("444.heic", made(rgb, "HEIF", quality=90, chroma=444))
    write("420.heic", made(rgb, "HEIF", quality=80))
    write("alpha.heic", made(rgba, "HEIF", quality=90, chroma=444))
    write("odd.heic", made(Image.fromarray(picture(w=61, h=37)), "HEIF", quality=90, chroma=444))
    for o in (3, 6):
        write(f"exif{o}.heic", made(rgb, "HEIF", quality=90, chroma=444, exif=exif(o)))
    tiles = [made(Image.fromarray(picture(w=64, h=64, seed=i)), "HEIF", quality=90, chroma=444) for i in range(4)]
    write("grid.heic", grid(tiles, 2, 2, (64, 64), (120, 100)))
    write("444.avif", made(rgb, "AVIF", quality=90, subsampling="4:4:4"))
    # Decoders differ in how they make colours of halved planes larger again, so these change slowly.
    y, x = np.mgrid[0:40, 0:64]
    slow = Image.fromarray(np.stack([3 * x + 20, 4 * y + 30, 200 - 2 * x], -1).astype(np.uint8))
    write("420.avif", made(slow, "AVIF", quality=90, subsampling="4:2:0"))
    write("alpha.avif", made(rgba, "AVIF", quality=90, subsampling="4:4:4"))
    write("exif6.avif", made(rgb, "AVIF", quality=90, subsampling="4:4:4", exif=exif(6)))
    write("animated.avif", made(rgb, "AVIF", quality=90, subsampling="4:4:4", save_all=True, append_images=[rgb.rotate(180)]))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    pngs()
    jpegs()
    webps()
    gifs()
    bmps()
    heifs(OUT.parent / "decode_heif")
    sys.exit(0)
