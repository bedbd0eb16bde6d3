"""Video files made for tests: every frame says its number, the sound is given sample by sample; and decoders for tests."""

import contextlib
import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from video import decode

BITS = 10  # of the frame number, as vertical bars in the middle of the picture, lowest bit left
W, H = 320, 240


def picture(number: int) -> np.ndarray:
    """(H, W, 3): a bar 16 pixels wide for every bit, white for 1, on black; a grey square above the leftmost bar."""
    pixels = np.zeros((H, W, 3), np.uint8)
    for bit in range(BITS):
        pixels[60:180, 80 + 16 * bit : 96 + 16 * bit] = 255 * (number >> bit & 1)
    pixels[30:50, 80:96] = 128  # tells what is up and left
    return pixels


def number(image: np.ndarray) -> int:
    """The number in a (224, 224, 3) picture, which shows the middle of the frame at 224 / 240 of its size."""
    scale = 224 / H
    columns = [round((80 + 16 * bit + 8) * scale - (W * scale - 224) / 2) for bit in range(BITS)]
    return sum(int(image[112, c].mean() > 128) << bit for bit, c in enumerate(columns))


def make(path: Path, seconds: float = 10.0, fps: Fraction | int = 25, times: list[float] | None = None,
         sound: np.ndarray | None = None, rate: int = 48_000, pictures: bool = True, start: float = 0.0,
         sound_start: float = 0.0, video_codec: str = "libx264", audio_codec: str = "aac", options: dict | None = None,
         drift: float = 1.0, aspect: Fraction | None = None) -> Path:
    """A clip with frames at `times` (or `fps` a second) and `sound`, (channels, samples) float32; delays in s.

    drift: by what the time stamps of the sound are multiplied, its samples are not. aspect: width of a pixel, to its height."""
    with av.open(str(path), "w", options=options or {}) as container:
        if pictures:
            stream = container.add_stream(video_codec, rate=30 if times else fps, width=W, height=H, pix_fmt="yuv420p")
            by_rate = path.suffix in (".h264", ".hevc") or "mpeg" in video_codec  # no other way to tell it, or no other allowed
            stream.codec_context.time_base = 1 / Fraction(fps) if by_rate else Fraction(1, 90_000)
            stream.codec_context.sample_aspect_ratio = aspect or Fraction(1)
        if sound is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
            audio = container.add_stream(audio_codec, rate=rate, layout=layout)
            audio.codec_context.time_base = Fraction(1, rate)
        if pictures:
            if times is None:
                times = [float(n / Fraction(fps)) for n in range(round(seconds * fps))]
            for n, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
                frame.pts, frame.time_base = round((time + start) * 90_000), Fraction(1, 90_000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if sound is not None:
            packed = np.ascontiguousarray(sound.T.reshape(1, -1), np.float32)  # (1, samples * channels)
            size, offset = 1024 * len(sound), round((start + sound_start) * rate)
            resampler = av.AudioResampler(audio.codec_context.format.name, layout, rate)
            for i in range(0, packed.shape[1], size):
                frame = av.AudioFrame.from_ndarray(packed[:, i : i + size], format="flt", layout=layout)
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(i // len(sound) * drift) + offset
                for f in resampler.resample(frame):
                    container.mux(audio.encode(f))
            container.mux(audio.encode(None))
    return path


def turned(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Writes a display matrix into the first track header of an mp4 file, as a phone does."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    for i, x in enumerate([a, b, 0, c, d, 0, 0, 0, 1]):
        one = 1 << 30 if i % 3 == 2 else 1 << 16
        content[header + 40 + 4 * i : header + 44 + 4 * i] = (x * one).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path


def beside(path: Path, *sources: Path) -> Path:
    """All streams of the sources in one file, packets as they are."""
    with contextlib.ExitStack() as opened:
        inputs, out = [opened.enter_context(av.open(str(s))) for s in sources], opened.enter_context(av.open(str(path), "w"))
        streams = [[out.add_stream_from_template(s) for s in i.streams] for i in inputs]
        for i, copies in zip(inputs, streams):
            for packet in i.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    out.mux(packet)
    return path


def tone(seconds: float, rate: int = 48_000, begins: float = 0.0, frequency: float = 1000.0, level: float = 0.5) -> np.ndarray:
    """(samples,) float32: silence, then a sine."""
    t = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * frequency * t) * (t >= begins)).astype(np.float32)


def damaged(whole: bytes, n: int) -> tuple[str, bytes]:
    """The nth damaged copy: (file name, content)."""
    rng = np.random.default_rng(n)
    kind = n % 5
    if kind == 0:
        return f"cut{n}.mp4", whole[: rng.integers(0, len(whole))]
    if kind in (1, 2, 3):
        content, flips = bytearray(whole), int(rng.choice([1, 10, 100, 1000]))
        first = 0 if kind == 1 else len(whole) * 3 // 4 if kind == 2 else rng.integers(0, len(whole))
        for place in rng.integers(first, len(whole), flips):
            content[place] ^= 1 << rng.integers(8)
        return f"flip{n}.mp4", bytes(content)
    return [(f"empty{n}.mp4", b""), (f"text{n}.mp4", b"hello\n" * 999), (f"wrong{n}.txt", whole), (f"wrong{n}.mp3", whole),
            (f"noise{n}.mp4", rng.bytes(20_000))][n // 5 % 5]


# What the decoders of tests do. They start faster from here than from a module of tests, which imports PyTorch.


def read_in_bounds(path: Path, segments, longest) -> decode.Clip:
    """Ends the decoder if one file takes it over 10 s, or it has ever held over 1 GB."""
    started = time.monotonic()
    try:
        return decode.read_clip(path, segments, longest)
    finally:
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # kB; getrusage counts the parent, too
        if time.monotonic() - started > 10 or peak > 1 << 20:
            os._exit(99)


def kills_itself(path: Path, segments, longest) -> decode.Clip:
    if path.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if path.name == "hang":
        time.sleep(60)
    if path.name == "surprise":
        raise KeyError("x")
    return decode.Clip(1.0, np.full((1, 224, 224, 3), int(path.name), np.uint8), None)
