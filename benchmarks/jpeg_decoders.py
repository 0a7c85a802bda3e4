"""Which JPEG decoder is fastest, and do they decode to the same pixels?

    EDGECLS_DATA=photos python benchmarks/jpeg_decoders.py [--photos 200] [--rounds 7] [--libturbojpeg FILE]

One thread, files in memory, full size, RGB: OpenCV (what edgecls uses), simplejpeg and PyTurboJPEG (both
libjpeg-turbo), and both of them with its fast DCT and fast upsampling. Those that are not installed are left out, and
a line says so. In turns, medians of the rounds; then the largest difference of any pixel from OpenCV's.

PyTurboJPEG needs libjpeg-turbo's library: version 2 of it (Debian 12) goes with `pip install "PyTurboJPEG<2"`.
Without installing it: `apt-get download libturbojpeg0 && dpkg -x libturbojpeg0*.deb .`, and the path in
--libturbojpeg.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from networks import arguments_of, in_rounds, medians, photos, speed_line

from edgecls.decoding.header import read_header
from edgecls.images import Pixels

Decode = Callable[[bytes], Pixels]
OPENCV = "OpenCV"


def decoders(libturbojpeg: str | None) -> dict[str, Decode]:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    found: dict[str, Decode] = {OPENCV: lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)}
    try:
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
        found["simplejpeg, fast"] = partial(simplejpeg.decode_jpeg, fastdct=True, fastupsample=True)
    except ImportError as error:
        print(f"simplejpeg left out: {error}")
    try:
        import turbojpeg

        decode = turbojpeg.TurboJPEG(libturbojpeg).decode
        fast = turbojpeg.TJFLAG_FASTDCT | turbojpeg.TJFLAG_FASTUPSAMPLE
        found["PyTurboJPEG"] = partial(decode, pixel_format=turbojpeg.TJPF_RGB)
        found["PyTurboJPEG, fast"] = partial(decode, pixel_format=turbojpeg.TJPF_RGB, flags=fast)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # no package, no library, the wrong version
        print(f"PyTurboJPEG left out: {str(error).splitlines()[0]}")
    return found


def timed(decode: Decode, files: list[bytes]) -> float:
    started = time.perf_counter()
    for data in files:
        decode(data)
    return len(files) / (time.perf_counter() - started)


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--libturbojpeg", help="libturbojpeg.so, where the system does not have it")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    files = [path.read_bytes() for path in photos()[: arguments.photos]]
    headers = ((data, read_header(data)) for data in files)
    files = [
        data for data, header in headers if header and header.is_plain
    ]  # of CMYK the others hand out four channels
    found = decoders(arguments.libturbojpeg)
    speeds = in_rounds({name: partial(timed, decode, files) for name, decode in found.items()}, arguments.rounds)
    median = medians(speeds)
    largest = dict.fromkeys(found, 0)
    differing = dict.fromkeys(found, 0)
    for data in files:
        reference = found[OPENCV](data)
        for name, decode in found.items():
            difference = cv2.absdiff(reference, np.ascontiguousarray(decode(data))).max()
            largest[name], differing[name] = max(largest[name], int(difference)), differing[name] + bool(difference)
    print(f"{len(files)} photos, one thread")
    for name, speed in median.items():
        same = f"{speed / median[OPENCV]:.2f} x; largest difference {largest[name]}, in {differing[name]} photos"
        print(speed_line(name, speeds[name], "" if name == OPENCV else same))


if __name__ == "__main__":
    main()
