"""Files to pixels, against Pillow as the reference."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from edgecls import images
from edgecls.errors import ImageError
from edgecls.manifest import Preprocessing


def photo(height: int = 60, width: int = 90) -> Image.Image:
    """Smooth colour gradients: JPEG hardly changes them."""
    y, x = np.mgrid[:height, :width]
    channels = [255 * x / width, 255 * y / height, 255 * (x + y) / (height + width)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def rgb_of(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)


WHOLE = [
    pytest.param("JPEG", {"quality": 90}, id="jpeg"),
    pytest.param("JPEG", {"quality": 90, "progressive": True}, id="progressive jpeg"),
    pytest.param("PNG", {}, id="png"),
    pytest.param("WEBP", {"quality": 90}, id="lossy webp"),
    pytest.param("WEBP", {"lossless": True}, id="lossless webp"),
    pytest.param("BMP", {}, id="bmp"),
    pytest.param("TIFF", {}, id="tiff"),
    pytest.param("TIFF", {"compression": "tiff_lzw"}, id="lzw tiff"),
    pytest.param("TIFF", {"big_tiff": True}, id="bigtiff"),
    pytest.param("GIF", {}, id="gif"),
    pytest.param("AVIF", {"quality": 95}, id="avif"),
    pytest.param("PPM", {}, id="ppm"),
]


@pytest.mark.parametrize(("format", "options"), WHOLE)
def test_every_format_decodes_to_the_pixels_that_pillow_sees(format: str, options: dict[str, Any]) -> None:
    data = encoded(photo(), format, **options)
    pixels = images.decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (60, 90, 3)
    assert np.abs(pixels - rgb_of(data)).max() <= 3


@pytest.mark.parametrize(("format", "options"), WHOLE)
def test_the_header_says_the_size_before_anything_is_decoded(format: str, options: dict[str, Any]) -> None:
    assert images.stored_hw(encoded(photo(), format, **options)) == (60, 90)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    pixels = images.decode(data)
    assert pixels.shape == ((60, 90, 3) if orientation < 5 else (90, 60, 3))
    assert np.abs(pixels - rgb_of(data)).max() <= 3


MODES = [
    pytest.param("L", "PNG", id="grey png"),
    pytest.param("L", "JPEG", id="grey jpeg"),
    pytest.param("1", "PNG", id="one bit png"),
    pytest.param("P", "PNG", id="palette png"),
    pytest.param("P", "BMP", id="palette bmp"),
    pytest.param("P", "TIFF", id="palette tiff"),
    pytest.param("L", "TIFF", id="grey tiff"),
    pytest.param("CMYK", "JPEG", id="cmyk jpeg"),
    pytest.param("1", "TIFF", id="one bit tiff"),
    pytest.param("L", "GIF", id="grey gif"),
    pytest.param("L", "BMP", id="grey bmp"),
    pytest.param("1", "BMP", id="one bit bmp"),
    pytest.param("L", "PPM", id="grey pgm"),
]


@pytest.mark.parametrize(("mode", "format"), MODES)
def test_other_colour_modes_become_rgb(mode: str, format: str) -> None:
    data = encoded(photo().convert(mode), format)
    assert np.abs(images.decode(data) - rgb_of(data)).max() <= 3


def test_a_cmyk_tiff_is_not_taken_for_a_transparent_picture() -> None:
    data = encoded(photo().convert("CMYK"), "TIFF")
    assert np.abs(images.decode(data) - rgb_of(data)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_the_background_of_the_preprocessing(format: str) -> None:
    picture = photo().convert("RGBA")
    picture.putalpha(64)
    data = encoded(picture, format, **({"lossless": True} if format == "WEBP" else {}))
    for background in ((255, 255, 255), (10, 200, 30)):
        reference = Image.new("RGBA", picture.size, (*background, 255))
        reference.alpha_composite(picture)
        expected = np.asarray(reference.convert("RGB")).astype(int)
        pixels = images.decode(data, Preprocessing(background=background))
        assert np.abs(pixels - expected).max() <= 1, background


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(format: str) -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = images.decode(encoded(Image.fromarray(values), format))
    assert np.array_equal(pixels[:, :, 0], np.rint(values / 257).astype(np.uint8))
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


@pytest.mark.parametrize(("format", "options"), WHOLE)
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_an_error_at_every_length(format: str, options: dict[str, Any], kept: float) -> None:
    data = encoded(photo(), format, **options)
    with pytest.raises(ImageError, match=r"truncated|cannot be decoded"):
        images.decode(data[: max(16, int(len(data) * kept))])


def test_a_png_that_lacks_only_its_end_has_all_its_pixels() -> None:
    data = encoded(photo(), "PNG")
    assert np.array_equal(images.decode(data[:-12]), images.decode(data))


NOT_IMAGES = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b"hello, this is text", "not an image", id="text"),
    pytest.param(b"GIF89a" + bytes(50), "truncated", id="the first bytes of a gif, then zeros"),
    pytest.param(b"%PDF-1.7 ...", "PDF", id="pdf"),
    pytest.param(b"\x00\x00\x00\x18ftypheic" + bytes(40), "HEIC", id="heic"),
    pytest.param(b"\xff\xd8\xff", "truncated", id="first bytes of a jpeg"),
    pytest.param(b"\xff\xd8" + bytes(100), "truncated", id="jpeg start, then zeros"),
    pytest.param(b"II*\0" + b"\xff" * 20, "truncated", id="tiff that points outside itself"),
]


@pytest.mark.parametrize(("data", "reason"), NOT_IMAGES)
def test_what_is_not_an_image_says_what_it_is(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        images.decode(data)


def png_bomb(side: int = 30_000) -> bytes:
    """A valid one-bit PNG of side x side black pixels in about 110 kB."""
    row = bytes(1 + -(-side // 8))
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    return as_png(struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), rows)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the bomb was decoded"))
    with pytest.raises(ImageError, match="too large: decoding 30000 x 30000"):
        images.decode(png_bomb())


def test_a_strip_whose_resize_would_be_a_bomb_is_refused() -> None:
    strip = np.zeros((1, 100_000, 3), np.uint8)
    with pytest.raises(ImageError, match="too thin"):
        images.resize_and_crop(strip, Preprocessing())


def test_images_are_found_in_natural_order_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    names = ["img10.jpg", "img2.JPG", "b/1.PNG", "a/x.tiff", "Img1.jpeg", ".hidden.jpg", ".cache/y.jpg", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in images.find_images(tmp_path)]
    assert found == ["Img1.jpeg", "img2.JPG", "img10.jpg", "a/x.tiff", "b/1.PNG"]


def test_a_link_to_a_folder_above_does_not_walk_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert [path.name for path in images.find_images(tmp_path)] == ["1.jpg"]


def test_a_folder_named_like_an_image_is_found_and_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    (path,) = images.find_images(tmp_path)
    with pytest.raises(ImageError, match="is a folder"):
        images.read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"data")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        images.read(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: cannot be read: No such file"):
        images.load(tmp_path / "gone.jpg", Preprocessing())


SHAPES = [
    pytest.param((375, 500), (256, 341), id="landscape"),
    pytest.param((500, 375), (341, 256), id="portrait"),
    pytest.param((256, 256), (256, 256), id="as it is"),
    pytest.param((100, 300), (256, 768), id="enlarged"),
    pytest.param((1, 1), (256, 256), id="one pixel"),
]


@pytest.mark.parametrize(("given", "resized"), SHAPES)
def test_the_short_side_is_resized_and_the_centre_cropped(given: tuple[int, int], resized: tuple[int, int]) -> None:
    assert images.resized_hw(*given, Preprocessing()) == resized
    assert images.resize_and_crop(np.zeros((*given, 3), np.uint8), Preprocessing()).shape == (224, 224, 3)


def test_squash_ignores_the_aspect_ratio() -> None:
    squash = Preprocessing((100, 50), resize="squash", crop_fraction=1.0)
    assert images.resized_hw(375, 500, squash) == (100, 50)


def test_the_crop_is_the_centre_to_the_pixel() -> None:
    picture = np.arange(10 * 14, dtype=np.uint8).reshape(10, 14, 1).repeat(3, axis=2)
    preprocessing = Preprocessing((8, 8), crop_fraction=0.8)  # covers 10 x 10: no resize, then 8 of 10 rows
    assert np.array_equal(images.resize_and_crop(picture, preprocessing), picture[1:9, 3:11])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "area"])
def test_a_large_shrink_does_not_alias(interpolation: Any) -> None:
    checks = np.indices((512, 512)).sum(axis=0) % 2 * 255  # one-pixel checks average to mid grey
    picture = checks.astype(np.uint8)[..., None].repeat(3, axis=2)
    small = images.resize_and_crop(picture, Preprocessing((128, 128), crop_fraction=1.0, interpolation=interpolation))
    assert np.abs(small.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_reduced_scale_that_leaves_twice_the_resize(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(1200, 1700), "JPEG", quality=95, exif=exif)
    preprocessing = Preprocessing()
    reduced, full = images.decode(data, preprocessing), images.decode(data)
    assert min(reduced.shape[:2]) == 600  # half of 1,200; a quarter would be less than twice 256
    one, other = (images.resize_and_crop(image, preprocessing).astype(int) for image in (reduced, full))
    assert np.abs(one - other).mean() < 0.5


def test_a_small_jpeg_is_not_reduced() -> None:
    data = encoded(photo(1023, 1400), "JPEG", quality=90)
    assert images.decode(data, Preprocessing()).shape == (1023, 1400, 3)


def test_padding_shows_the_whole_picture_in_its_proportions_on_the_background() -> None:
    picture = np.full((40, 20, 3), 100, np.uint8)
    wide = Preprocessing((16, 32), resize="pad", crop_fraction=1.0, background=(255, 0, 0))
    seen = images.resize_and_crop(picture, wide)
    assert seen.shape == (16, 32, 3)
    inside = (seen == 100).all(axis=2)
    assert inside[:, 12:20].all()  # 8 wide, as 40 x 20 is at a height of 16
    assert inside.sum() == 16 * 8
    assert (seen[~inside] == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (33, 32), (5, 5)])
def test_padding_fits_pictures_of_any_shape(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing((24, 31), resize="pad", crop_fraction=0.9)
    seen = images.resize_and_crop(np.zeros((*size, 3), np.uint8), preprocessing)
    assert seen.shape == (24, 31, 3)


def as_png(header: bytes, rows: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with a chunk more, behind its header."""
    return png[:33] + chunk(kind, body) + png[33:]


def grey_png(depth: int, columns: tuple[int, int]) -> bytes:
    """8 x 4 pixels, whose left half has one value and whose right half another, at a depth of 1 to 16 bits."""
    bits = "".join(f"{value:0{depth}b}" * 4 for value in columns)
    row = b"\0" + int(bits, 2).to_bytes(depth, "big")
    return as_png(struct.pack(">IIBBBBB", 8, 4, depth, 0, 0, 0, 0), zlib.compress(row * 4))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_shows_the_background(depth: int) -> None:
    most = (1 << depth) - 1
    for hidden, shown in ((0, most), (most, 0), (1, 0)):
        data = with_chunk(grey_png(depth, (hidden, shown)), b"tRNS", struct.pack(">H", hidden))
        for background in ((255, 255, 255), (10, 200, 30)):
            pixels = images.decode(data, Preprocessing(background=background))
            assert (pixels[:, :4] == background).all(), (hidden, background)
            assert (pixels[:, 4:] == (255 if shown else 0)).all(), (hidden, background)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_shows_the_background(depth: int) -> None:
    values = np.zeros((4, 8, 3), np.uint16 if depth == 16 else np.uint8)
    values[:, 4:] = 9
    data = cv2.imencode(".png", values)[1].tobytes()
    pixels = images.decode(with_chunk(data, b"tRNS", bytes(6)))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] <= 9).all()


def bmp(header_size: int, masks: tuple[int, ...], padding: int) -> bytes:
    """A 32-bit BMP of 4 x 4 red pixels (200, 40, 40) with bit masks."""
    fields = struct.pack("<IiiHHIIiiII", header_size, 4, 4, 1, 32, 3 if masks else 0, 64, 0, 0, 0, 0)
    body = fields + struct.pack(f"<{len(masks)}I", *masks)
    body += bytes(max(0, header_size - len(body)))
    offset = 14 + len(body)
    return struct.pack("<2sIHHI", b"BM", offset + 64, 0, 0, offset) + body + bytes([40, 40, 200, padding]) * 16


RGB_MASKS = (0xFF0000, 0xFF00, 0xFF)


@pytest.mark.parametrize("padding", [0, 255])
@pytest.mark.parametrize(
    ("header_size", "masks"),
    [(40, ()), (40, RGB_MASKS), (52, RGB_MASKS), (56, (*RGB_MASKS, 0)), (108, (*RGB_MASKS, 0))],
)
def test_the_fourth_byte_of_a_bmp_is_padding_unless_a_mask_says_otherwise(
    header_size: int, masks: tuple[int, ...], padding: int
) -> None:
    assert (images.decode(bmp(header_size, masks, padding)) == (200, 40, 40)).all()


def test_a_lab_tiff_becomes_rgb() -> None:
    lab = Image.merge("LAB", [Image.new("L", (8, 8), value) for value in (136, 81, 70)])  # about (255, 0, 0)
    data = encoded(lab, "TIFF")
    assert np.abs(images.decode(data).astype(int) - rgb_of(data)).max() <= 1


@pytest.mark.parametrize("junk", [b"\0", b"1234567", b"\xff\0\xff\0", b"\xff" * 50])
def test_stray_bytes_between_the_segments_of_a_jpeg_are_skipped(junk: bytes) -> None:
    data = encoded(photo(), "JPEG", quality=90)
    at = 4 + int.from_bytes(data[4:6], "big")  # behind the first segment
    assert np.array_equal(images.decode(data[:at] + junk + data[at:]), images.decode(data))


def test_megabytes_of_filling_do_not_hold_the_interpreter() -> None:
    data = encoded(photo(), "JPEG")
    started = time.perf_counter()
    images.decode(data[:2] + b"\xff" * (20 << 20) + data[2:])
    with pytest.raises(ImageError, match="belong to no segment"):
        images.decode(data[:2] + bytes(20 << 20) + data[2:])
    assert time.perf_counter() - started < 10  # byte by byte in Python it took half a minute


def test_a_small_jpeg_that_claims_to_be_large_is_refused() -> None:
    data = bytearray(encoded(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 13_300, 13_300)
    with pytest.raises(ImageError, match="cannot hold the 13300 x 13300 pixels"):
        images.decode(bytes(data))
    assert images.decode(encoded(Image.new("L", (4_000, 3_000)), "JPEG", optimize=True)).shape == (3_000, 4_000, 3)


def test_large_transparency_needs_little_more_memory_than_its_pixels() -> None:
    picture = encoded(Image.new("RGBA", (1_500, 1_500), (200, 40, 40, 128)), "PNG")
    images.decode(picture)
    tracemalloc.start()
    pixels = images.decode(picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.abs(pixels[0, 0].astype(int) - (227, 147, 147)).max() <= 1
    assert peak < 35e6  # what is stored 9 MB, what is returned 7 MB, and bands; it was 150 MB


def test_memory_that_cannot_be_had_is_an_error_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cv2, "imdecode", full)
    with pytest.raises(ImageError, match="needs more memory than this process can get"):
        images.decode(encoded(photo(), "JPEG"))


def test_a_heic_file_says_what_lets_it_be_read() -> None:
    with pytest.raises(ImageError, match=r"pip install 'edgecls\[heic\]'"):
        images.decode(b"\x00\x00\x00\x18ftypheic" + bytes(40))


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (images.decode(data) == (255, 0, 0)).all(), format
