"""One video file -> what is seen and heard in each of its seconds. Needs PyAV and Pillow, no PyTorch.

Segment t of a video is its second [t, t + 1). What is seen in it is the frame that a player shows at t + 0.5 s, as
CLIP wants it: short side 224, centre crop. What is heard is its waveform, 48 kHz, mono, as CLAP wants it. (By recipe
`uwav`; recipe `valor` does it otherwise, see __init__.py.)

Files from the internet are short of a stream, cut off, damaged or no videos at all. Each of these is a ValueError
with a cause of a few words, so that whoever reads ten thousand of them can count the causes.
"""

from __future__ import annotations

import collections
import contextlib
import math
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import av
import numpy as np
from PIL import Image

from common.command import follow_the_parent
from video import IMAGE_SIZE, RECIPES, SAMPLE_RATE, Recipe

SEEN_AT = 0.5  # of the time that a kept picture stands for
PICTURES = {"middle": 1, "linspace": 8}  # kept for each second
LONGEST_SOUND = 10  # s that CLAP reads
TAIL = 0.1  # s: a last segment shorter than this is no segment (containers overrun by a frame or two)
CUT_SHORT = 0.5  # s that may be missing from the length that the container declares
GAP = 0.1  # s between two pieces of sound that count as silence; less is rounding of timestamps
BROKEN_SHARE = 0.1  # of the packets may be damaged; a video with more is refused
MAX_PIXELS = 2**26  # of a frame (8K video has half of that): damaged headers ask for gigabytes
LONGEST = 600.0  # s: decoded, a second takes 0.35 MB, or 1.4 MB at 8 pictures a second
STUCK = 300.0  # s: a process that works longer on one video is stopped
NO_OTHER_FILE = {"protocol_whitelist": "none"}  # playlists and scripts name others; ours is open already


@dataclass(frozen=True)
class Clip:
    """T segments of one video. A stream that the video lacks is None."""

    seconds: float  # length of the video
    images: np.ndarray | None  # (T, 224, 224, 3) uint8, RGB
    sounds: np.ndarray | None  # (T, 48000, or length of a slice) float32, in [-1, 1] unless the file clips

    @property
    def segments(self) -> int:
        return len(self.images if self.images is not None else self.sounds)

    @property
    def lacks(self) -> str | None:
        return "picture" if self.images is None else "sound" if self.sounds is None else None


def read_clip(path: str | Path, segments: int | None = None, longest: float = LONGEST,
              recipe: Recipe = RECIPES["uwav"]) -> Clip:
    """Decode a video file in one pass over its best video and audio stream.

    T is `segments`, or ceil(length in s) without it (0.1 s over a whole second do not count). Where the picture ends
    before the sound does, the last frame stays; where the sound begins late or ends early, there is silence.
    Raises ValueError("cause: detail")."""
    try:
        with open(path, "rb") as file, av.open(file, metadata_errors="replace", options=NO_OTHER_FILE) as container:
            streams, declared = _decode(container, longest, recipe)
            decoded = max(s.end for s in streams)
            ends = [(f"its {s.kind}", s.end, s.declared) for s in streams]
            for what, end, whole in (("it", decoded, declared), *ends):
                if end < whole - CUT_SHORT:
                    raise ValueError(f"cut short: {what} ends after {end:.1f} s of {whole:.1f} s")
            # The container knows how long the last frame stays; far below what was decoded, its length is wrong.
            seconds = declared if declared and declared > decoded - CUT_SHORT else decoded
            T = segments or math.ceil(seconds - TAIL)
            if T < 1 or seconds <= T - 1:
                raise ValueError(f"cut short: {seconds:.1f} s are less than {T or 1} segments")
            found = {s.kind: s.segments(T) for s in streams}
            return Clip(seconds, found.get("picture"), found.get("sound"))
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None


def _decode(container: av.container.InputContainer, longest: float,
            recipe: Recipe) -> tuple[list[_Stream], float]:
    """All of the file, packet by packet: its streams, and the length that the container declares (0: it does not)."""
    declared = (container.duration or 0) / av.time_base
    if declared > longest:
        raise ValueError(f"too long: {declared:.0f} s, the limit is {longest:.0f} s (--longest)")
    origin = max(0.0, (container.start_time or 0) / av.time_base)  # s: time stamps need not begin at 0
    if "matroska" in container.format.name:  # its length is where it ends, not how long it lasts
        declared = max(0.0, declared - origin)
    streams = {}
    for type, reader in (("video", _Images), ("audio", _Sounds)):
        best = container.streams.best(type)
        # Not there: what no decoder is for, as a flipped bit can bring about, and the cover of a song.
        if best and best.codec_context and not best.disposition & av.stream.Disposition.attached_pic:
            streams[best.index] = reader(best, origin, longest, recipe)
    packets, broken = 0, 0
    try:
        for packet in container.demux([s.stream for s in streams.values()]) if streams else ():
            packets += packet.size > 0
            try:
                for frame in packet.decode():
                    streams[packet.stream.index].add(frame)
            except av.FFmpegError:
                broken += 1
    except av.FFmpegError:  # the file is damaged here, and there is no way past it
        broken += 1
    if broken > BROKEN_SHARE * packets:
        raise ValueError(f"damaged: {broken} of {packets} packets cannot be decoded")
    empty = [s.kind for s in streams.values() if not s.end]
    if broken and empty:
        raise ValueError(f"damaged: nothing of its {empty[0]} can be decoded")
    if len(empty) == len(streams):  # in a whole file, a stream without content is a missing stream
        raise ValueError("no stream: neither pictures nor sound in it")
    return [s for s in streams.values() if s.end], declared


class _Stream:
    """Common to pictures and sound: when a frame is shown, how far the stream reached, how far it should."""

    def __init__(self, stream: av.stream.Stream, origin: float, longest: float, recipe: Recipe):
        self.stream, self.origin, self.longest, self.recipe = stream, origin, longest, recipe
        stream.codec_context.thread_count = 1  # the cores are busy with other videos
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.kept: list[np.ndarray] = []  # pictures of the segments so far, or pieces of sound
        self.end = 0.0  # s
        self.declared = float(stream.duration * stream.time_base) if stream.duration else 0.0  # s

    def time_of(self, frame: av.frame.Frame) -> float | None:
        """In s from the beginning of the video; None if the frame has no time stamp."""
        time = None if frame.pts is None else frame.time - self.origin
        if time and time > self.longest + 1:
            raise ValueError(f"damaged: a time stamp of {time:.0f} s")
        return time


class _Images(_Stream):
    """Takes frames in the order in which they are shown, keeps one picture a segment, or 8 a second to choose from."""

    kind = "picture"
    frame: av.VideoFrame | None = None  # shown now
    picture: np.ndarray | None = None  # of that frame, once it is to be kept
    first, frames = 0.0, 0

    def add(self, frame: av.VideoFrame) -> None:
        time = self.time_of(frame)
        if time is None:
            return
        if self.frame is None:
            self.frame, self.first = frame, time  # what comes before the first frame looks like it
        # The middles of what these pictures stand for lie before `time`.
        self._keep_until(math.ceil(time * PICTURES[self.recipe.frames] - SEEN_AT))
        self.frame, self.picture = frame, None
        self.frames += 1
        usual = (time - self.first) / max(1, self.frames - 1)  # s from frame to frame
        self.end = max(self.end, time + (float(frame.duration * frame.time_base) if frame.duration else usual))

    def _keep_until(self, pictures: int) -> None:
        while len(self.kept) < pictures:
            if self.picture is None:
                pixels, squash = self.frame.to_ndarray(format="rgb24"), self.recipe.picture == "squash"
                self.picture = square_image(pixels, self.frame.rotation, squash)
            self.kept.append(self.picture)

    def segments(self, T: int) -> np.ndarray:
        chosen = np.arange(T)
        if self.recipe.frames == "linspace":
            frames = max(1, round(self.end * PICTURES["linspace"]))  # as many as `ffmpeg -r 8` would write
            chosen = np.linspace(0, frames - 1, T).round().astype(int)
        self._keep_until(chosen[-1] + 1)
        return np.stack([self.kept[n] for n in chosen])  # (T, 224, 224, 3)


def square_image(pixels: np.ndarray, rotation: int = 0, squash: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 -> (224, 224, 3): turned upright (degrees counterclockwise), short side 224, centre crop.

    Pixel for pixel what CLIP's own preprocessing (resize and centre crop of torchvision, on a PIL image) makes. squash:
    both sides become 224, bilinearly and without antialiasing, as VALOR's torchvision 0.13 resizes tensors."""
    image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(rotation / 90))))
    w, h = image.size
    if squash:
        size, shrink = (IMAGE_SIZE, IMAGE_SIZE), (w / IMAGE_SIZE, 0, 0, 0, h / IMAGE_SIZE, 0)
        return np.asarray(image.transform(size, Image.Transform.AFFINE, shrink, Image.Resampling.BILINEAR))
    scale = IMAGE_SIZE / min(w, h)
    w, h = (IMAGE_SIZE, int(IMAGE_SIZE * h / w)) if w <= h else (int(IMAGE_SIZE * w / h), IMAGE_SIZE)
    image = image.resize((w, h), Image.Resampling.BICUBIC) if scale != 1 else image
    left, top = round((w - IMAGE_SIZE) / 2), round((h - IMAGE_SIZE) / 2)
    return np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))  # (224, 224, 3)


class _Sounds(_Stream):
    """Lays pieces of sound end to end: time stamps place the first and tell of gaps, they are too coarse for more."""

    kind = "sound"
    samples = 0  # so far
    resampler: av.AudioResampler | None = None
    format: tuple | None = None  # of what it takes

    def add(self, frame: av.AudioFrame) -> None:
        format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if format != self.format:  # the first frame, or the stream changes
            self._flush()
            # Packed samples: averaging two channels ourselves keeps the level. More are first mixed down to two by
            # FFmpeg, as ITU-R BS.775 has it; a plain average would make stereo in six channels 9.5 dB quieter.
            layout = frame.layout.name if frame.layout.nb_channels <= 2 else "stereo"
            self.resampler, self.format = av.AudioResampler("flt", layout, SAMPLE_RATE), format
        self._lay(self.resampler.resample(frame))

    def _flush(self) -> None:
        if self.resampler is not None:
            self._lay(self.resampler.resample(None))
            self.resampler = self.format = None

    def _lay(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            piece = frame.to_ndarray().reshape(frame.samples, -1).mean(1)  # (samples, channels) -> (samples,)
            time = self.time_of(frame)
            gap = 0 if time is None else round(time * SAMPLE_RATE) - self.samples
            if gap > GAP * SAMPLE_RATE or (not self.kept and gap > 0):
                piece = np.concatenate((np.zeros(gap, np.float32), piece))
            elif not self.kept and gap < 0:
                piece = piece[-gap:]  # before the beginning of the video
            self.kept.append(piece)
            self.samples += len(piece)
            self.end = self.samples / SAMPLE_RATE

    def segments(self, T: int) -> np.ndarray:
        self._flush()
        wave = np.nan_to_num(np.concatenate(self.kept).astype(np.float32))
        if self.recipe.sound == "slices":
            wave = np.pad(wave, (0, max(0, T - len(wave))))
            length = min(len(wave) // T, LONGEST_SOUND * SAMPLE_RATE)
            starts = np.linspace(0, len(wave), T + 1).round().astype(int)[:-1]  # (T,)
            return np.stack([wave[start : start + length] for start in starts])  # (T, length)
        wave = wave[: T * SAMPLE_RATE]
        return np.pad(wave, (0, T * SAMPLE_RATE - len(wave))).reshape(T, SAMPLE_RATE)  # (T, 48000)


# ---- Many files: processes that decode -----------------------------------------------------------

def read_clips(paths: list[Path], workers: int, segments: int | None = None, longest: float = LONGEST,
               stuck: float = STUCK, read: Callable = read_clip) -> Iterator[Clip | str]:
    """The clip of every path, in order; a cause instead of a clip where there is none.

    A decoder that dies or hangs costs its video, and is replaced. At most two videos a worker are decoded ahead."""
    from pebble import ProcessPool

    # A fork would not survive PyTorch's threads.
    pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"), initializer=follow_the_parent)
    ahead: collections.deque[Future] = collections.deque()
    try:
        for path in paths:
            if len(ahead) == 2 * workers:
                yield _clip_or_cause(ahead.popleft(), stuck)
            with _interrupts_for_us():
                ahead.append(pool.schedule(read, [path, segments, longest], timeout=stuck))
        while ahead:
            yield _clip_or_cause(ahead.popleft(), stuck)
    finally:
        pool.stop()
        pool.join()


@contextlib.contextmanager
def _interrupts_for_us() -> Iterator[None]:
    """Around the start of decoders: Ctrl-C is not for them, and while they import it would end in a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    sys.warnoptions.append("ignore:resource_tracker")  # would complain of semaphores when we are killed
    resource_tracker.ensure_running()  # which would undo this, were it started with the first decoder
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _clip_or_cause(future: Future, stuck: float) -> Clip | str:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return f"hangs: not decoded after {stuck:.0f} s"
    except ProcessExpired as error:
        code = error.exitcode
        return f"crashed: the decoder ended with {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"
    except ValueError as error:
        return str(error)
    except Exception as error:  # whatever a damaged file makes a library raise: it costs this video only
        return f"cannot be read: {type(error).__name__}: {error}"
