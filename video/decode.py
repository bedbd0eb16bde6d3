"""One video file -> what is seen and heard in each of its seconds. Needs PyAV and Pillow, no PyTorch.

Segment t of a video is its second [t, t + 1). What is seen in it is the frame that a player shows at t + 0.5 s, as
CLIP wants it: short side 224, centre crop. What is heard is its waveform, 48 kHz, mono, as CLAP wants it. (By recipe
`uwav`; recipe `valor` does it otherwise, see __init__.py.)

Files that are short of a stream, cut off, damaged or no videos at all are a ValueError with a cause of a few words, so
that whoever reads ten thousand of them can count the causes.
"""

from __future__ import annotations

import collections
import math
import multiprocessing
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path

import av
import av.logging
import numpy as np
from PIL import Image

from common.command import follow_the_parent
from video import IMAGE_SIZE, RECIPES, SAMPLE_RATE, Recipe

SEEN_AT = 0.5  # of the time that a kept picture stands for
KEPT = {"middle": 1, "linspace": 8}  # kept for each second
LONGEST_SOUND = 10  # s that CLAP reads
TAIL = 0.1  # s: a last segment shorter than this is no segment (containers overrun by a frame or two)
CUT_SHORT = 0.5  # s that may be missing from the length that the container declares
GAP = 0.1  # s that the sound may be ahead of or behind its time stamps, or these go back; less is rounding
JUMP = 10.0  # s forward: the clock of a broadcast was set, as ffmpeg has it; less is a pause
BROKEN_SHARE = 0.1  # of the packets may be damaged; a video with more is refused
MAX_PIXELS = 2**26  # of a frame (8K video has half of that): damaged headers ask for gigabytes
LONGEST = 600.0  # s: decoded, a second takes 0.35 MB, or 1.4 MB at 8 pictures a second
AT_ONCE = 16  # pictures or sounds through an encoder
STUCK = 300.0  # s: a process that works longer on one video is stopped
NO_OTHER_FILE = {"protocol_whitelist": "none"}  # playlists and scripts name others; ours is open already
TAGS = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}  # later ones do so anyway


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
              recipe: Recipe = RECIPES["uwav"], encode: dict[str, Callable] | None = None) -> Clip:
    """Decode a video file in one pass over its best video and audio stream.

    T is `segments`, or ceil(length in s) without it (0.1 s over a whole second do not count). Where the picture ends
    before the sound does, the last frame stays; where the sound begins late or ends early, there is silence.
    encode: "picture", "sound" -> what makes (n, D) of the first, next, ... 16 segments as soon as they are decoded; the
    clip then has (T, D), and a long video needs little more memory than a short one (recipe `uwav` only).
    Raises ValueError("cause: detail")."""
    if Path(path).exists() and not Path(path).is_file():  # a pipe may never begin, a device never end
        raise ValueError("cannot be read: not a file")
    try:
        with open(path, "rb") as file:
            av.logging.set_level(av.logging.WARNING)
            with av.logging.Capture() as said:
                container = av.open(file, options=NO_OTHER_FILE, **TAGS)
            av.logging.set_level(None)
            with container:
                guessed = any("Estimating duration from bitrate" in text for _, _, text in said)  # FFmpeg logs it only
                streams = _decode(_File(container, guessed, longest, recipe, encode or {}))
            seconds = max(s.length for s in streams)
            T = segments or math.ceil(seconds - TAIL)
            if T < 1 or seconds <= T - 1:
                raise ValueError(f"too short: {seconds:.1f} s are less than {T or 1} segments")
            found = {s.kind: s.segments(T) for s in streams}
            return Clip(seconds, found.get("picture"), found.get("sound"))
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None


def is_read(stream: av.stream.Stream) -> bool:
    """Not those that no decoder is for, as a flipped bit can bring about, and the cover of a song."""
    return bool(stream.codec_context) and not stream.disposition & av.stream.Disposition.attached_pic


class _File:
    """What the streams of a file share."""

    def __init__(self, container: av.container.InputContainer, guessed: bool, longest: float, recipe: Recipe,
                 encode: dict[str, Callable]):
        self.container, self.longest, self.recipe, self.encode = container, longest, recipe, encode
        self.streams: dict[int, _Stream] = {}
        self.jumps = bool(container.format.flags & av.format.Flags.ts_discont.value)  # its clock may be set
        self.declares = not self.jumps and not guessed  # how long it is; else FFmpeg looks for its end, or guesses
        begin = (container.start_time or 0) / av.time_base  # s: time stamps need not begin at 0
        self.begin = begin if self.jumps else max(0.0, begin)  # a clock runs over after 26.5 h; else it is run-up
        self.shifts = [0.0]  # s to add to time stamps: from the beginning, and from each place where they begin again

    def from_begin(self, seconds: float) -> float:
        """Of a declared length: some say how long a file lasts, some when it ends. 0: it is no evidence."""
        return self.declares * (seconds - self.begin if seconds > self.begin else seconds)


def _decode(file: _File) -> list[_Stream]:
    """All of the file, packet by packet: its streams, whole."""
    container, streams = file.container, file.streams
    for type, reader in (("video", _Images), ("audio", _Sounds)):
        there = [s for s in getattr(container.streams, type) if is_read(s)]
        if there:
            best = max(there, key=_rank)  # the first of equal ones
            streams[best.index] = reader(best, file)
    declared, whole = max([0.0, *(s.declared for s in streams.values())]), 0.0
    if not declared and len(streams) == len(container.streams):  # else it may be that of others, such as subtitles
        declared = whole = file.from_begin((container.duration or 0) / av.time_base)
    if declared > file.longest:
        raise ValueError(f"too long: {declared:.0f} s, the limit is {file.longest:.0f} s (--longest)")
    packets, broken = 0, 0
    try:
        for packet in container.demux([s.stream for s in streams.values()]) if streams else ():
            packets += packet.size > 0
            streams[packet.stream.index].straighten(packet)
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
    if whole:
        max(streams.values(), key=lambda s: s.end).declared = whole
    for s in streams.values():
        if s.end and s.end < s.declared - CUT_SHORT:
            raise ValueError(f"cut short: its {s.kind} ends after {s.end:.1f} s of {s.declared:.1f} s")
    return [s for s in streams.values() if s.end]


def _rank(stream: av.stream.Stream) -> tuple[bool, bool, int]:
    """Which of several streams ffmpeg takes: one that has content, then a default one, then the largest."""
    context = stream.codec_context
    size = context.channels if stream.type == "audio" else context.width * context.height
    return size > 0, bool(stream.disposition & av.stream.Disposition.default), size


class _Stream:
    """Common to pictures and sound: when a frame is shown, how far the stream reached, how far it should."""

    stamp = "pts"

    def __init__(self, stream: av.stream.Stream, file: _File):
        self.stream, self.file = stream, file
        stream.codec_context.thread_count = 1  # the cores are busy with other videos
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.encode = file.encode.get(self.kind, np.asarray)
        self.done: list[np.ndarray] = []  # AT_ONCE segments each, encoded
        self.kept: list[np.ndarray] = []  # the segments after them; or pictures, of which a recipe takes some
        tag = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))  # of Matroska
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        self.declared = file.from_begin(3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) if tag else seconds)
        self.end = 0.0  # s
        self.last, self.next, self.part = -math.inf, file.begin, 0  # s, of its packets; which shift they get

    @property
    def length(self) -> float:
        """In s. The container knows how long the last frame stays; far below what was decoded, it is wrong."""
        if self.declared < self.end - CUT_SHORT:
            return self.end
        return self.declared if self.kind == "picture" else min(self.declared, self.end)

    def straighten(self, packet: av.Packet) -> None:
        """Time stamps that begin again, as in files that were joined, or jump go on where the stream was. The stream
        that comes to such a place first decides by how much, so that all stay together, as ffmpeg does it."""
        if packet.dts is None:
            return
        dts, shifts = float(packet.dts * packet.time_base), self.file.shifts
        latest = max(self.file.begin, *(s.last for s in self.file.streams.values()))
        for part in range(self.part, len(shifts)):
            if dts + shifts[part] > self.last - GAP and (not self.file.jumps or dts + shifts[part] < latest + JUMP):
                break
        else:
            part = len(shifts)
            shifts.append(self.next - dts)
        self.part, self.last = part, dts + shifts[part]
        self.next = self.last + float((packet.duration or 0) * packet.time_base)
        if self.file.jumps and packet.pts is not None and (packet.pts - packet.dts) * packet.time_base > JUMP:
            packet.pts = packet.dts  # FFmpeg took it from the packet behind the jump
        packet.dts += round(shifts[part] / packet.time_base)
        if packet.pts is not None:
            packet.pts += round(shifts[part] / packet.time_base)

    def time_of(self, frame: av.frame.Frame) -> float:
        """In s from the beginning of the video; without a time stamp, a frame follows the one before it."""
        stamp = getattr(frame, self.stamp)
        time = self.end if stamp is None else float(stamp * frame.time_base) - self.file.begin
        if time > self.file.longest + 1:
            raise ValueError(f"too long: over {time:.0f} s, the limit is {self.file.longest:.0f} s (--longest)")
        return round(time, 6)  # as ffmpeg has it: the sum of 15 frames at 30 a second is not past 0.5 s

    def keep(self, segment: np.ndarray) -> None:
        self.kept.append(segment)
        if len(self.kept) == AT_ONCE:
            self.done.append(self.encode(np.stack(self.kept)))
            self.kept = []

    def all_kept(self, T: int) -> np.ndarray:
        if rest := self.kept[: max(0, T - AT_ONCE * len(self.done))]:
            self.done.append(self.encode(np.stack(rest)))
        kept, self.done = np.concatenate(self.done), []
        return kept[:T]  # (T, ...)


class _Images(_Stream):
    """Takes frames in the order in which they are shown, keeps one picture a segment, or 8 a second to choose from."""

    kind = "picture"
    frame: av.VideoFrame | None = None  # shown now
    picture: np.ndarray | None = None  # of that frame, once it is to be kept
    first, frames = 0.0, 0

    def __init__(self, stream: av.VideoStream, file: _File):
        super().__init__(stream, file)
        if file.container.format.name == "avi":  # has no other; frames leave the decoder in the order of their pts
            self.stamp = "dts"
        self.aspect = float(stream.sample_aspect_ratio or 1)  # of a pixel, width to height
        w, h = stream.codec_context.width, stream.codec_context.height
        if w * h > MAX_PIXELS:
            raise ValueError(f"too large: {w} x {h} pixels, the limit is {MAX_PIXELS} in all")

    def add(self, frame: av.VideoFrame) -> None:
        time = self.time_of(frame)
        if self.frame is None:
            self.frame, self.first = frame, time  # what comes before the first frame looks like it
        # The middles of what these pictures stand for lie before `time`.
        self._keep_until(math.ceil(time * KEPT[self.file.recipe.frames] - SEEN_AT))
        self.frame, self.picture = frame, None
        self.frames += 1
        usual = (time - self.first) / max(1, self.frames - 1)  # s from frame to frame
        self.end = max(self.end, time + (float(frame.duration * frame.time_base) if frame.duration else usual))

    def _keep_until(self, pictures: int) -> None:
        for _ in range(AT_ONCE * len(self.done) + len(self.kept), pictures):
            if self.picture is None:
                pixels, aspect = upright(self.frame, self.aspect)
                self.picture = square_image(pixels, aspect, self.file.recipe.picture == "squash")
            self.keep(self.picture)

    def segments(self, T: int) -> np.ndarray:
        chosen = np.arange(T)
        if self.file.recipe.frames == "linspace":
            frames = max(1, round(self.end * KEPT["linspace"]))  # as many as `ffmpeg -r 8` would write
            chosen = np.linspace(0, frames - 1, T).round().astype(int)
        self._keep_until(chosen[-1] + 1)
        return self.all_kept(chosen[-1] + 1)[chosen]  # (T, 224, 224, 3) or (T, D)


def upright(frame: av.VideoFrame, aspect: float = 1.0) -> tuple[np.ndarray, float]:
    """(H, W, 3) uint8 as a player shows it, turned or mirrored, and the aspect of its pixels. A display matrix ((a, b),
    (c, d)) puts what is at x, y of the frame at a x + c y, b x + d y. (ISO 14496-12, 8.3.2; angles between the right
    ones are taken for the nearest.)"""
    pixels, matrix = frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels, aspect
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, aspect, a, d = pixels.swapaxes(0, 1), 1 / aspect, c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], aspect


def square_image(pixels: np.ndarray, aspect: float = 1.0, squash: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 -> (224, 224, 3): short side 224, centre crop, of the shape that a player shows: pixels may be
    `aspect` times as wide as high. Pixel for pixel what CLIP's own preprocessing (resize and centre crop of
    torchvision, on a PIL image) makes. squash: both sides become 224, bilinearly and without antialiasing, as VALOR's
    torchvision 0.13 resizes tensors."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    w, h = image.size
    if squash:
        size, shrink = (IMAGE_SIZE, IMAGE_SIZE), (w / IMAGE_SIZE, 0, 0, 0, h / IMAGE_SIZE, 0)
        return np.asarray(image.transform(size, Image.Transform.AFFINE, shrink, Image.Resampling.BILINEAR))
    w = max(1, round(w * aspect))
    w, h = (IMAGE_SIZE, int(IMAGE_SIZE * h / w)) if w <= h else (int(IMAGE_SIZE * w / h), IMAGE_SIZE)
    if w * h > MAX_PIXELS:
        raise ValueError(f"too large: {w} x {h} pixels when its short side is {IMAGE_SIZE}")
    image = image.resize((w, h), Image.Resampling.BICUBIC) if (w, h) != image.size else image
    left, top = round((w - IMAGE_SIZE) / 2), round((h - IMAGE_SIZE) / 2)
    return np.asarray(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))  # (224, 224, 3)


class _Sounds(_Stream):
    """Lays pieces of sound end to end: time stamps place the first and tell of gaps, they are too coarse for more."""

    kind = "sound"
    samples, early = 0, 0  # so far, and to leave out next, because those before lasted too long
    rest = np.zeros(0, np.float32)  # less than a second, after what is kept
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
            piece = np.nan_to_num(frame.to_ndarray().reshape(frame.samples, -1).mean(1))  # (samples,), of all channels
            gap = round(self.time_of(frame) * SAMPLE_RATE) - self.samples
            if not self.samples or abs(gap) > GAP * SAMPLE_RATE:
                self._append(np.zeros(max(0, gap), np.float32))
                self.early = max(0, -gap)
            self._append(piece[self.early :])
            self.early -= min(self.early, len(piece))

    def _append(self, piece: np.ndarray) -> None:
        self.samples += len(piece)
        self.end = self.samples / SAMPLE_RATE
        self.rest = np.concatenate((self.rest, piece))
        while len(self.rest) >= SAMPLE_RATE:
            self.keep(self.rest[:SAMPLE_RATE])
            self.rest = self.rest[SAMPLE_RATE:]

    def segments(self, T: int) -> np.ndarray:
        self._flush()
        if self.file.recipe.sound == "slices":
            wave = np.concatenate([*map(np.ravel, self.done), *self.kept, self.rest])
            wave = np.pad(wave, (0, max(0, T - len(wave))))
            length = min(len(wave) // T, LONGEST_SOUND * SAMPLE_RATE)
            starts = np.linspace(0, len(wave), T + 1).round().astype(int)[:-1]  # (T,)
            return np.stack([wave[start : start + length] for start in starts])  # (T, length)
        self._append(np.zeros(max(0, T * SAMPLE_RATE - self.samples), np.float32))
        return self.all_kept(T)  # (T, 48000) or (T, D)


# ---- Many files: processes that decode -----------------------------------------------------------

def read_clips(paths: list[Path], workers: int, segments: int | None = None, longest: float = LONGEST,
               stuck: float = STUCK, read: Callable = read_clip) -> Iterator[Clip | str]:
    """The clip of every path, in order; a cause instead of a clip where there is none. A decoder that dies or hangs
    costs its video, and is replaced. At most two videos a worker are decoded ahead."""
    from pebble import ProcessPool

    # A fork would not survive PyTorch's threads.
    pool = ProcessPool(workers, context=multiprocessing.get_context("spawn"), initializer=follow_the_parent)
    sys.warnoptions.append("ignore:resource_tracker")  # would complain of semaphores when we are stopped
    resource_tracker.ensure_running()  # which would undo what follows, were it started with the first decoder
    ahead: collections.deque[Future] = collections.deque()
    try:
        for path in paths:
            if len(ahead) == 2 * workers:
                yield _clip_or_cause(ahead.popleft(), stuck)
            # Decoders are born deaf to Ctrl-C, which this process decides about.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            ahead.append(pool.schedule(read, [path, segments, longest], timeout=stuck))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while ahead:
            yield _clip_or_cause(ahead.popleft(), stuck)
    finally:
        pool.stop()
        pool.join()


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
