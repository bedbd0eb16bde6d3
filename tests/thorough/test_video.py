"""Decoding: the frame that is shown in the middle of each second, the waveform of each second, and damaged files."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, need, unavailable

need("av")

import clips
from video import RECIPES, decode


def shown(times: list[float], T: int) -> list[int]:
    """The number of the last frame at or before the middle of every second; the first where there is none."""
    return [max([n for n, x in enumerate(times) if x <= t + 0.5], default=0) for t in range(T)]


# ---- pictures ----


@pytest.mark.parametrize("fps", [10, 24, 25, 30, Fraction(30000, 1001), 50])
def test_picture_of_a_segment_is_the_frame_shown_in_its_middle(tmp_path, fps):
    clip = decode.read_clip(clips.make(tmp_path / "a.mp4", 10, fps))
    assert clip.images.shape == (10, 224, 224, 3) and clip.images.dtype == np.uint8 and clip.sounds is None
    times = [n / fps for n in range(round(10 * fps))]
    assert [clips.number(image) for image in clip.images] == shown(times, 10)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate(tmp_path, name):
    rng = np.random.default_rng(0)
    times = sorted({0.0, *np.round(rng.uniform(0, 9.9, 40), 2), 9.95})
    times = [x for x in times if not 3.2 < x < 6.1]  # a frame that stays for three seconds
    clip = decode.read_clip(clips.make(tmp_path / name, times=times))
    assert [clips.number(image) for image in clip.images] == shown(times, 10)


@pytest.mark.parametrize("seconds, T", [(7.3, 8), (12.7, 13), (1.0, 1), (10.04, 10), (0.5, 1)])
def test_segments_are_the_seconds_rounded_up(tmp_path, seconds, T):
    clip = decode.read_clip(clips.make(tmp_path / "a.mp4", seconds, 25, sound=clips.tone(seconds)[None]))
    assert len(clip.images) == len(clip.sounds) == clip.segments == T


def test_a_wanted_number_of_segments_crops_and_fills_but_does_not_invent(tmp_path):
    path = clips.make(tmp_path / "a.mp4", 9.3, 25, sound=clips.tone(9.3)[None])
    assert decode.read_clip(path, segments=10).segments == 10 and decode.read_clip(path, segments=4).segments == 4
    with pytest.raises(ValueError, match="too short: 9.3 s are less than 12 segments"):
        decode.read_clip(path, segments=12)


def test_time_counts_from_the_beginning_of_the_file_not_from_time_stamp_zero(tmp_path):
    path = clips.make(tmp_path / "a.ts", 5, 25, sound=clips.tone(5, begins=2.0)[None], start=7.0)
    clip = decode.read_clip(path)
    priming = 1024 / 48_000  # s: the file begins with the encoder's run-up, which this format does not mark as such
    assert [clips.number(image) for image in clip.images] == shown([n / 25 + priming for n in range(125)], 5)
    assert first_loud(clip.sounds) == pytest.approx(2.0 + priming, abs=0.005)


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                    (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_all_eight_orientations_are_shown_as_the_display_matrix_says(tmp_path, matrix):
    """The truth is the definition: what is at (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
    a, b, c, d = matrix
    stored = clips.picture(37)
    y, x = np.mgrid[: clips.H, : clips.W]
    X, Y = a * x + c * y, b * x + d * y
    expected = np.zeros((np.ptp(Y) + 1, np.ptp(X) + 1, 3), np.uint8)
    expected[Y - Y.min(), X - X.min()] = stored
    found = decode.read_clip(clips.turned(clips.make(tmp_path / "a.mp4", 2, 25), *matrix)).images[1].astype(int)
    error = np.abs(found - decode.square_image(expected)).mean()
    others = [np.rot90(x, k) for x in (expected, expected[::-1]) for k in range(4)][1:]
    assert error < 3 and all(error < 0.7 * np.abs(found - decode.square_image(x)).mean() for x in others)


@pytest.mark.parametrize("name, aspect, matrix", [("a.mp4", Fraction(4, 3), None), ("a.mkv", Fraction(16, 11), None), ("a.ts", Fraction(8, 9), None),
                                                  ("b.mp4", Fraction(1, 2), None), ("c.mp4", Fraction(2), (0, 1, -1, 0))])
def test_pixels_that_are_not_square_are_shown_as_a_player_shows_them(tmp_path, name, aspect, matrix):
    from PIL import Image

    path = clips.make(tmp_path / name, 2, 25, aspect=aspect)
    shown = Image.fromarray(clips.picture(37)).resize((round(clips.W * aspect), clips.H), Image.Resampling.BICUBIC)
    expected = np.rot90(shown, -1) if matrix else np.asarray(shown)
    found = decode.read_clip(clips.turned(path, *matrix) if matrix else path).images[1].astype(int)
    assert np.abs(found - decode.square_image(expected)).mean() < 3
    assert np.abs(found - decode.square_image(np.rot90(clips.picture(37), -1) if matrix else clips.picture(37))).mean() > 5


def test_pixels_of_a_damaged_shape_need_no_memory(tmp_path):
    with pytest.raises(ValueError, match="too large: 298666.* x 224 pixels when its short side is 224"):
        decode.square_image(clips.picture(37), aspect=1e6)
    assert decode.square_image(clips.picture(37), aspect=1e-3).shape == (224, 224, 3)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_frame_that_is_too_large_is_called_so_and_not_damaged(tmp_path, monkeypatch, name):
    path = clips.make(tmp_path / name, 1)
    monkeypatch.setattr(decode, "MAX_PIXELS", clips.W * clips.H - 1)
    with pytest.raises(ValueError, match="too large: 320 x 240 pixels, the limit is 76799 in all"):
        decode.read_clip(path)


# ---- time stamps ----

PARTS = {"ts": {}, "mpg": dict(video_codec="mpeg2video", audio_codec="mp2"), "vob": dict(video_codec="mpeg2video", audio_codec="mp2")}


@pytest.mark.parametrize("name, start, sound", [("ts", 0, True), ("mpg", 0, True), ("vob", 0, True), ("ts", 0, False), ("ts", 50, True),
                                                ("ts", 2000, True), ("mpg", 100, True), ("mpg", 15, True)])
def test_files_that_were_joined_play_one_after_the_other(tmp_path, name, start, sound):
    """Time stamps begin again, or jump by `start` s: pictures and sound of the second part follow those of the first."""
    parts = [clips.make(tmp_path / f"{n}.{name}", 4, 25, sound=clips.tone(4, begins=begins)[None] if sound else None, start=late, **PARTS[name])
             for n, begins, late in (("A", 3.5, 0), ("B", 1.25, start))]
    joined = tmp_path / f"AB.{name}"
    joined.write_bytes(b"".join(part.read_bytes() for part in (*parts, parts[0])))
    clip, second = decode.read_clip(joined), decode.read_clip(parts[1])
    assert 12 <= clip.segments <= 13 and clip.seconds == pytest.approx(12.1, abs=0.2)
    numbers = [clips.number(image) for image in clip.images[:12]]
    expected = shown([n / 25 for n in range(100)], 4)
    assert np.abs(np.array(numbers) - 3 * expected).max() <= 4  # frames, by which the sound of a part is longer
    if sound:  # after the end of the first part, which has a tone, too
        later = clip.sounds.reshape(-1)[round(4.3 * 48_000) :]
        assert 4.3 + first_loud(later) == pytest.approx(4 + first_loud(second.sounds), abs=0.16)


@pytest.mark.parametrize("start", [2**33 / 90_000 - 3.3, 2**33 / 90_000 - 1.5, 2**33 / 90_000 - 120])
def test_a_clock_that_runs_over_is_no_gap(tmp_path, start):
    path = clips.make(tmp_path / "a.ts", 6, 25, sound=clips.tone(6, begins=4.0)[None], start=start)
    clip = decode.read_clip(path)
    assert clip.segments == 6 and first_loud(clip.sounds) == pytest.approx(4.0, abs=0.05)
    assert np.abs(np.array([clips.number(i) for i in clip.images]) - shown([n / 25 for n in range(150)], 6)).max() <= 1


def test_a_pause_of_the_sound_is_no_jump_of_the_clock(tmp_path):
    """12 s in which a broadcast has pictures and no sound."""
    import av

    whole = clips.make(tmp_path / "a.mp4", 20, 10, sound=clips.tone(20)[None])
    with av.open(str(whole)) as source, av.open(str(tmp_path / "b.ts"), "w") as out:
        streams = [out.add_stream_from_template(s) for s in source.streams]
        for packet in source.demux():
            if packet.dts is not None and (packet.stream.type == "video" or not 3 <= packet.dts * packet.time_base < 15):
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    sounds = decode.read_clip(tmp_path / "b.ts").sounds
    loud = [bool(np.abs(s).max() > 0.1) for s in sounds]  # second 3 has the end of the last packet before the pause
    assert loud[:3] + loud[4:] == [True] * 3 + [False] * 11 + [True] * 5


@pytest.mark.parametrize("fps, codec", [(25, "libx264"), (10, "libx264"), (30, "libx264"), (25, "mpeg4")])
def test_frames_of_avi_which_has_no_presentation_times_come_in_order(tmp_path, fps, codec):
    """libx264 makes B frames unless told not to. The format delays the pictures by as many frames as the decoder holds."""
    path = clips.make(tmp_path / "a.avi", 10, fps, sound=clips.tone(10)[None], audio_codec="mp3", video_codec=codec)
    clip = decode.read_clip(path)
    late = np.array(shown([n / fps for n in range(10 * fps)], 10)) - [clips.number(image) for image in clip.images]
    assert clip.segments == 10 and late.min() == late.max() <= 2


@pytest.mark.parametrize("name, codec, fps", [("a.h264", "libx264", 25), ("a.h264", "libx264", 10), ("a.h264", "libx264", 50), ("a.h264", "libx264", Fraction(30000, 1001)),
                                              ("a.hevc", "libx265", 25), ("a.hevc", "libx265", 50)])
def test_raw_streams_without_time_stamps_have_the_frame_rate_that_they_name(tmp_path, name, codec, fps):
    clip = decode.read_clip(clips.make(tmp_path / name, 10, fps, video_codec=codec))
    assert clip.segments == 10 and clip.sounds is None
    assert np.abs(np.array([clips.number(image) for image in clip.images]) - shown([n / fps for n in range(round(10 * fps))], 10)).max() <= (fps == 10)


@pytest.mark.parametrize("drift", [0.97, 0.995, 1.005, 1.03])
@pytest.mark.parametrize("name, codec", [("a.mkv", "pcm_s16le"), ("a.mp4", "aac")])
def test_sound_keeps_to_its_time_stamps_whichever_clock_is_slow(tmp_path, drift, name, codec):
    t = np.arange(40 * 48_000) / 48_000
    beeps = (np.sin(2 * np.pi * 1000 * t) * (t % 5 < 0.3)).astype(np.float32)
    wave = decode.read_clip(clips.make(tmp_path / name, 40, 5, sound=beeps[None], audio_codec=codec, drift=drift)).sounds.reshape(-1)
    loud = np.flatnonzero(np.abs(wave) > 0.5)
    begins = loud[np.r_[True, np.diff(loud) > 48_000]] / 48_000
    assert len(begins) == 8 and np.abs(begins - drift * 5 * np.arange(8)).max() < decode.GAP + 0.03


# ---- how long a file should be ----


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.nut", "a.ts"])
@pytest.mark.parametrize("longer", ["sound", "picture"])
def test_how_long_a_stream_is_that_is_not_read_is_no_evidence(tmp_path, name, longer):
    first = clips.make(tmp_path / "first.mp4", 6, 10, sound=clips.tone(6)[None])
    if longer == "sound":
        second = clips.make(tmp_path / "second.mp4", sound=clips.tone(9)[None], pictures=False)
    else:
        second = clips.make(tmp_path / "second.mp4", 9, 1)
    path = clips.beside(tmp_path / name, first, second)
    assert decode.read_clip(path).segments == 6


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mov"])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_of_several_sounds_the_one_is_taken_that_ffmpeg_takes(tmp_path, name, channels):
    if not shutil.which("ffmpeg"):
        unavailable("ffmpeg: apt-get install ffmpeg")
    """Among defaults the one of most channels, then the first, however long the others are."""
    first = clips.make(tmp_path / "first.mp4", 5, 10, sound=clips.tone(5)[None].repeat(2, 0))
    second = clips.make(tmp_path / "second.mp4", sound=clips.tone(8, frequency=300)[None].repeat(channels, 0), pictures=False)
    path = clips.beside(tmp_path / name, first, second)
    taken = subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-i", path, "-ac", "1", "-ar", "48000", "-f", "f32le", "-"], capture_output=True, check=True)
    loudest = [np.abs(np.fft.rfft(x[48_000:96_000])).argmax() for x in (decode.read_clip(path).sounds.reshape(-1), np.frombuffer(taken.stdout, np.float32))]
    assert loudest[0] == loudest[1] and loudest[1] in (300, 1000)


def test_a_file_with_another_stream_is_still_seen_to_be_cut_short(tmp_path):
    first = clips.make(tmp_path / "first.mp4", 8, 10, sound=clips.tone(8)[None])
    path = clips.beside(tmp_path / "a.mkv", first, clips.make(tmp_path / "second.mp4", sound=clips.tone(8, frequency=300)[None], pictures=False))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut short: its (picture|sound) ends after .* of 8.0 s"):
        decode.read_clip(path)


@pytest.mark.parametrize("name, codec, options", [("a.mp3", "mp3", {"write_xing": "0"}), ("b.mp3", "mp3", {"write_xing": "0", "id3v2_version": "3"}),
                                                  ("a.aac", "aac", {}), ("a.mp3", "mp3", {})])
def test_a_length_that_is_guessed_from_the_bit_rate_is_no_evidence(tmp_path, name, codec, options):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 12 * 48_000)).astype(np.float32)
    noise[:, : 5 * 48_000] *= 1e-4
    clip = decode.read_clip(clips.make(tmp_path / name, sound=noise, pictures=False, audio_codec=codec, options=options))
    assert clip.segments == 12 and first_loud(clip.sounds) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("name", ["a.mkv", "a.nut", "a.flv", "a.ts", "a.mp4"])
def test_a_file_that_begins_at_two_hours_is_as_long_as_it_plays(tmp_path, name):
    clip = decode.read_clip(clips.make(tmp_path / name, 5, 10, sound=clips.tone(5, begins=2.0)[None], start=7200.0))
    assert clip.segments == 5 and first_loud(clip.sounds) == pytest.approx(2.0, abs=0.05)
    assert np.abs(np.array([clips.number(image) for image in clip.images]) - shown([n / 10 for n in range(50)], 5)).max() <= 1


@pytest.mark.parametrize("left_out", [1, 2, 3])
def test_fragments_of_which_the_first_are_missing_last_as_long_as_they_play(tmp_path, left_out):
    """As a part of a broadcast: header, then the fragments from the n-th on."""
    content = clips.make(tmp_path / "a.mp4", 40, 25, options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}).read_bytes()
    places = [n - 4 for n in range(len(content)) if content[n : n + 4] == b"moof"]  # 4: the size of a box is before its name
    assert len(places) == 4  # a key frame every 250 frames
    path = tmp_path / "b.mp4"
    path.write_bytes(content[: places[0]] + content[places[left_out] :])
    clip = decode.read_clip(path)
    assert clip.segments == 40 - 10 * left_out and clips.number(clip.images[0]) == 250 * left_out + 12


# ---- long files ----


def test_encoders_are_given_the_segments_in_blocks_and_take_their_place(tmp_path):
    path, sizes = clips.make(tmp_path / "a.mp4", 37, 5, sound=clips.tone(37, begins=18.5)[None]), {"picture": [], "sound": []}

    def means(kind: str):
        return lambda x: sizes[kind].append(len(x)) or x.reshape(len(x), -1).mean(1, keepdims=True)

    whole, clip = decode.read_clip(path), decode.read_clip(path, encode={kind: means(kind) for kind in sizes})
    assert sizes == {"picture": [16, 16, 5], "sound": [16, 16, 5]}
    for x, y in ((whole.images, clip.images), (whole.sounds, clip.sounds)):
        assert np.array_equal(x.reshape(37, -1).mean(1, keepdims=True), y)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the peak of memory in /proc")
def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path):
    code = (f"import sys; sys.path[:0] = {[str(ROOT)]}\nimport numpy as np\nfrom video import decode\n"
            "zeros = lambda x: np.zeros((len(x), 1))\nprint(decode.read_clip(sys.argv[1], encode=dict(picture=zeros, sound=zeros)).segments)\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])")
    peaks = []
    for seconds in (120, 600):
        path = clips.make(tmp_path / "a.mkv", seconds, 1, sound=np.zeros((1, 8000 * seconds), np.float32), rate=8000, audio_codec="pcm_s16le")
        T, kB = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.split()
        peaks.append(int(kB))
        assert int(T) == seconds
    assert peaks[1] - peaks[0] < 80_000  # kB; decoded, the 480 s that it is longer are 168,000, and were held three times


def test_square_image_is_pixel_for_pixel_the_preprocessing_of_clip():
    from video import encoders

    if not importlib.util.find_spec("torchvision"):
        unavailable("torchvision: pip install open_clip_torch")
    encoders.import_torchvision()
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    theirs = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])
    rng = np.random.default_rng(0)
    for h, w in [(240, 320), (320, 240), (224, 224), (101, 373), (480, 641), (225, 224), (1080, 1920), (30, 40)]:
        pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
        assert np.array_equal(decode.square_image(pixels), np.asarray(theirs(Image.fromarray(pixels))))


# ---- the recipe of VALOR ----

VALOR = RECIPES["valor"]


@pytest.mark.parametrize("fps", [10, 25, 30, Fraction(30000, 1001)])
@pytest.mark.parametrize("seconds", [10, 9.3])
def test_pictures_of_valor_are_ten_of_the_jpgs_that_ffmpeg_writes_at_8_a_second(tmp_path, fps, seconds):
    """A jpg stands for an eighth of a second, and ffmpeg gives it the frame whose time is the last to round to it."""
    clip = decode.read_clip(clips.make(tmp_path / "a.mp4", seconds, fps), 10, recipe=VALOR)
    times = [n / fps for n in range(round(seconds * fps))]
    jpgs = [max(n for n, t in enumerate(times) if t <= (k + 0.5) / 8) for k in range(round(len(times) / fps * 8))]
    expected = [jpgs[round(k)] for k in np.linspace(0, len(jpgs) - 1, 10)]
    found = [clips.number(squeezed(image)) for image in clip.images]
    assert clip.images.shape == (10, 224, 224, 3) and found == expected != shown(times, 10)


def squeezed(image: np.ndarray) -> np.ndarray:
    """A squashed picture of 4 : 3 as the crop of it would look like, for `clips.number`."""
    columns = ((np.arange(224) + 0.5 - 112) * clips.H / clips.W + 112).astype(int)
    return image[:, columns]


def test_squashed_pictures_are_those_of_valors_torchvision():
    """Bilinear, not antialiased, of a float tensor, to both sides; 8-bit rounding is ours."""
    import torch

    rng = np.random.default_rng(0)
    for h, w in [(240, 320), (320, 240), (480, 641), (1080, 1920), (30, 40)]:
        pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        theirs = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        assert np.abs(decode.square_image(pixels, squash=True) - theirs.numpy()).max() < 1.5


def test_sound_of_valor_is_ten_slices_of_the_whole(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 470_007)).astype(np.float32)  # 9.8 s
    path = clips.make(tmp_path / "a.mkv", 9.8, sound=noise, audio_codec="pcm_s16le")
    sounds = decode.read_clip(path, 10, recipe=VALOR).sounds
    assert sounds.shape == (10, 47_000)
    for t in range(10):
        np.testing.assert_allclose(sounds[t], noise[0, round(47_000.7 * t) :][:47_000], atol=1 / 32768)
    assert decode.read_clip(path, 10).sounds.shape == (10, 48_000)


# ---- sound ----


def first_loud(sounds: np.ndarray, level: float = 0.1) -> float:
    """In s."""
    return np.flatnonzero(np.abs(sounds.reshape(-1)) > level)[0] / 48_000


def test_waveform_is_sample_exact(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 3 * 48_000)).astype(np.float32)
    noise[:, :70_001] = 0
    clip = decode.read_clip(clips.make(tmp_path / "a.mkv", 3, sound=noise, audio_codec="pcm_s16le"))
    assert clip.sounds.shape == (3, 48_000) and clip.sounds.dtype == np.float32
    np.testing.assert_allclose(clip.sounds.reshape(-1), noise[0], atol=1 / 32768)
    assert np.flatnonzero(clip.sounds.reshape(-1))[0] == 70_001


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("name, codec", [("a.mp4", "aac"), ("a.mkv", "pcm_s16le")])
def test_tone_of_any_rate_begins_when_it_should_and_keeps_level_and_phase(tmp_path, rate, name, codec):
    path = clips.make(tmp_path / name, 4, sound=clips.tone(4, rate, begins=1.25)[None], rate=rate, audio_codec=codec)
    wave = decode.read_clip(path).sounds.reshape(-1)
    assert first_loud(wave) == pytest.approx(1.25, abs=0.002)
    expected = clips.tone(4, begins=1.25)
    inside = slice(round(1.4 * 48_000), round(3.8 * 48_000))
    assert np.abs(wave[inside] - expected[inside]).max() < (0.06 if codec == "aac" else 0.005)
    assert np.abs(wave[: round(1.2 * 48_000)]).max() < 0.02


def test_stereo_is_averaged_not_summed(tmp_path):
    left, right = clips.tone(3, frequency=500), clips.tone(3, frequency=3000, level=0.2)
    path = clips.make(tmp_path / "a.mkv", 3, sound=np.stack([left, right]), audio_codec="pcm_s16le")
    np.testing.assert_allclose(decode.read_clip(path).sounds.reshape(-1), (left + right) / 2, atol=2 / 32768)


def test_stereo_in_six_channels_is_as_loud_as_in_two_and_its_centre_3_db_quieter(tmp_path):
    """ITU-R BS.775: left and right as they are, centre and surround times 0.707, no low-frequency effects."""
    left, right, silence = clips.tone(3, frequency=500, level=0.2), clips.tone(3, frequency=3000, level=0.2), np.zeros(3 * 48_000, np.float32)
    for name, channels, expected in (("stereo", [left, right, silence, silence, silence, silence], (left + right) / 2),
                                     ("centre", [silence, silence, left, silence, silence, silence], np.sqrt(0.5) * left),
                                     ("effects", [silence, silence, silence, left, silence, silence], silence)):
        path = clips.make(tmp_path / f"{name}.mkv", 3, sound=np.stack(channels), audio_codec="pcm_s16le")
        np.testing.assert_allclose(decode.read_clip(path).sounds.reshape(-1), expected, atol=4 / 32768)


def test_matroska_that_begins_late_is_whole_and_cut_short_is_still_seen(tmp_path):
    path = clips.make(tmp_path / "a.mkv", 10, 10, sound=clips.tone(10)[None], start=30.0)
    clip = decode.read_clip(path)
    assert clip.segments == 10 and clip.seconds == pytest.approx(10, abs=0.1)
    (tmp_path / "b.mkv").write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ValueError, match="cut short"):
        decode.read_clip(tmp_path / "b.mkv")


def test_sound_that_begins_late_is_preceded_by_silence(tmp_path):
    path = clips.make(tmp_path / "a.mkv", 6, sound=clips.tone(3)[None], audio_codec="pcm_s16le", sound_start=2.0)
    wave = decode.read_clip(path).sounds.reshape(-1)
    assert first_loud(wave) == pytest.approx(2.0, abs=0.002) and len(wave) == 6 * 48_000 and not wave[5 * 48_000 + 100 :].any()


def test_milliseconds_in_time_stamps_do_not_chop_the_wave(tmp_path):
    """Matroska rounds time stamps to 1 ms; at 44.1 kHz a piece of 1024 samples lasts 23.2 ms."""
    path = clips.make(tmp_path / "a.mkv", 5, sound=clips.tone(5, 44_100)[None], rate=44_100, audio_codec="pcm_s16le")
    wave = decode.read_clip(path).sounds.reshape(-1)[2000:-2000]
    assert np.abs(np.diff(wave)).max() < 0.5 * 2 * np.pi * 1000 / 48_000 * 1.02  # no steps in a sine


def test_missing_streams_are_none(tmp_path):
    silent = decode.read_clip(clips.make(tmp_path / "a.mp4", 2))
    assert silent.sounds is None and silent.images.shape[0] == 2
    for name in ("b.mp4", "b.m4a", "b.wav"):
        codec = "pcm_s16le" if name.endswith("wav") else "aac"
        heard = decode.read_clip(clips.make(tmp_path / name, sound=clips.tone(2)[None], pictures=False, audio_codec=codec))
        assert heard.images is None and heard.sounds.shape == (2, 48_000)


def test_real_clip_has_ten_segments(shared):
    clip = decode.read_clip(shared / "data/media/BjCEufrlXm4.mp4")  # the container says 10.03 s
    assert clip.images.shape == (10, 224, 224, 3) and clip.sounds.shape == (10, 48_000)
    assert clip.images.std() > 20 and 0.01 < clip.sounds.std() < 1


# ---- damaged files ----


def test_causes_of_unusable_files(tmp_path):
    whole = clips.make(tmp_path / "whole.mp4", 8, sound=clips.tone(8)[None], options={"movflags": "faststart"}).read_bytes()
    files = {"empty.mp4": b"", "text.mp4": b"this is not a video" * 100, "half.mp4": whole[: len(whole) // 2],
             "zeros.mp4": bytes(5000)}
    causes = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            decode.read_clip(tmp_path / name)
        causes[name] = str(error.value)
    assert causes["half.mp4"].startswith("cut short: ") and "of 8.0 s" in causes["half.mp4"]
    assert all(causes[n].startswith("cannot be read: ") for n in ("empty.mp4", "text.mp4", "zeros.mp4")), causes
    with pytest.raises(ValueError, match="too long: 8 s, the limit is 5 s"):
        decode.read_clip(tmp_path / "whole.mp4", longest=5)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        decode.read_clip(tmp_path / "nowhere.mp4")


def test_a_stream_for_which_there_is_no_decoder_counts_as_not_there(tmp_path):
    """One flipped bit of the codec's name is enough, in a file that is whole otherwise."""
    content = bytearray(clips.make(tmp_path / "a.mp4", 2, sound=clips.tone(2)[None]).read_bytes())
    content[content.index(b"avc1", content.index(b"stsd"))] ^= 16
    (tmp_path / "b.mp4").write_bytes(content)
    clip = decode.read_clip(tmp_path / "b.mp4")
    assert clip.images is None and clip.sounds.shape == (2, 48_000) and clip.lacks == "picture"
    content = bytearray(clips.make(tmp_path / "a.mp4", 2).read_bytes())
    content[content.index(b"avc1", content.index(b"stsd"))] ^= 16
    (tmp_path / "b.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="no stream: neither pictures nor sound"):
        decode.read_clip(tmp_path / "b.mp4")


LISTS = {  # file name -> a text that names the file next.ts
    "hls.mp4": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nnext.ts\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile next.ts\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
                'profiles="urn:mpeg:dash:profile:isoff-live:2011" mediaPresentationDuration="PT2S"><Period><AdaptationSet '
                'mimeType="video/mp4"><Representation id="0" bandwidth="1000"><BaseURL>next.ts</BaseURL></Representation>'
                "</AdaptationSet></Period></MPD>",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"}
LISTS["hls.m3u8"] = LISTS["hls.mp4"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the canary is a pipe: whoever opens it to read waits forever")
def test_a_file_that_lists_others_is_refused_and_they_are_not_opened(tmp_path, monkeypatch):
    import av

    monkeypatch.chdir(tmp_path)  # where a name without a folder may be looked for
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    clips.make(tmp_path / "next.ts", 2, sound=clips.tone(2)[None])
    for name in ("concat.mp4", "hls.m3u8"):  # the library itself would read the neighbour, so the canary can die
        with av.open(str(tmp_path / name)) as container:
            assert len(container.streams) == 2
    (tmp_path / "next.ts").unlink()
    os.mkfifo(tmp_path / "next.ts")
    causes = list(decode.read_clips([tmp_path / name for name in LISTS], 2, stuck=20.0))
    assert all(isinstance(c, str) and c.startswith(("cannot be read: ", "no stream: ")) for c in causes), causes


def test_a_picture_with_a_pattern_for_a_name_is_no_sequence_of_its_neighbours(tmp_path):
    from PIL import Image

    for name in ("a%d.jpg", "a0.jpg", "a1.jpg", "a2.jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    with pytest.raises(ValueError, match="0.0 s are less than 1 segments"):
        decode.read_clip(tmp_path / "a%d.jpg")


@pytest.mark.parametrize("name, content, message", [
    ("a.npy", b"\x93NUMPY\x01\x00", "is one array; features are an .npz file with several"), ("a.mp4", b"\x93NUMPY\x01\x00", "is one array"),
    ("gone.mp4", None, "gone.mp4: no such file$"), ("https://example.org/a.mp4", None, "no such file; download what a URL names first")])
def test_what_is_no_video_is_said_before_encoders_are_missed(tmp_path, monkeypatch, name, content, message):
    import types

    import parse

    monkeypatch.chdir(tmp_path)
    if content:
        Path(name).write_bytes(content)
    bundle = types.SimpleNamespace(feature_set="clip_clap", sizes={"audio": 512}, session=lambda name: pytest.fail("asked for an encoder"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse.features_of_video(Path(name), bundle)


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"\xff\xfe.mkv", b"\x93\xfa.webm"])
def test_a_name_that_is_no_text_can_be_plotted(tmp_path, name):
    import parse

    nothing = np.zeros((2, 1))
    result = parse.Parse(["dog"], nothing, nothing, nothing[0], nothing > 0, nothing > 0, nothing > 0)
    parse.plot(result, parse._named(Path(os.fsdecode(name))), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    causes = list(decode.read_clips(sorted(tmp_path.iterdir()), 2, stuck=10.0))
    assert causes == ["cannot be read: not a file", "cannot be read: No such file or directory", *["cannot be read: not a file"] * 2]


def test_tags_that_are_no_text_do_not_matter(tmp_path):
    import av

    with av.open(str(clips.make(tmp_path / "a.mp4", 1))) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        out.metadata["title"] = "TITLETITLE"
        stream = out.add_stream_from_template(source.streams[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    content = (tmp_path / "b.mkv").read_bytes()
    assert b"TITLETITLE" in content
    (tmp_path / "c.mkv").write_bytes(content.replace(b"TITLETITLE", b"\xff\xfe\xe9TITLETI"))
    assert decode.read_clip(tmp_path / "c.mkv").segments == 1


def test_damaged_copies_give_a_clip_or_a_cause_in_10_s_and_1_gb(tmp_path):
    """UWAV_SOAK=N tries N; a thousand took 45 s."""
    sources, cases = [], int(os.environ.get("UWAV_SOAK", 300))
    for name, codec, options in (("a.mp4", "aac", {}), ("b.mp4", "aac", {"movflags": "faststart"}), ("c.mkv", "pcm_s16le", {}), ("d.ts", "aac", {})):
        sources.append(clips.make(tmp_path / name, 1, sound=clips.tone(1)[None], audio_codec=codec, options=options).read_bytes())
    for n in range(cases):
        (tmp_path / f"{n}").write_bytes(clips.damaged(sources[n // 5 % 4], n)[1])
    results = list(decode.read_clips([tmp_path / f"{n}" for n in range(cases)], workers=2, stuck=20.0, read=clips.read_in_bounds))
    read = [x for x in results if isinstance(x, decode.Clip)]
    for clip in read:
        assert clip.images is None or clip.images.shape == (clip.segments, 224, 224, 3)
        assert clip.sounds is None or (clip.sounds.shape == (clip.segments, 48_000) and np.isfinite(clip.sounds).all())
        assert clip.segments >= 1
    causes = [x for x in results if isinstance(x, str)]
    assert len(results) == cases == len(read) + len(causes) and cases / 5 < len(read) < cases * 4 / 5
    assert not [x for x in causes if not x or "\n" in x or "exit status 99" in x or x.startswith("hangs")]


# ---- many files ----


@pytest.mark.parametrize("workers", [1, 3])
def test_a_decoder_that_crashes_or_hangs_costs_its_video_only(workers):
    names = ["0", "1", "crash", "3", "hang", "5", "crash", "surprise", "8", *map(str, range(9, 20))]
    results = list(decode.read_clips([Path(n) for n in names], workers, stuck=8.0, read=clips.kills_itself))
    assert len(results) == len(names)
    for name, result in zip(names, results):
        if name.isdecimal():
            assert result.images[0, 0, 0, 0] == int(name)
        else:
            assert result.startswith({"crash": "crashed: the decoder ended with SIGSEGV", "hang": "hangs: ",
                                      "surprise": "cannot be read: KeyError"}[name])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_decoders_end_with_the_run_even_one_that_hangs_and_without_tracebacks(how):
    """The signal goes to the whole group, as Ctrl-C does: once while decoders are being imported, once while one hangs."""
    code = (f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests/helpers')]}\nif __name__ == '__main__':\n"
            "    import clips\n    from pathlib import Path\n    from video import decode\n"
            "    from common.command import one_sentence_errors\n    with one_sentence_errors():\n        print(flush=True)\n"
            "        for x in decode.read_clips([Path(n) for n in ('1', 'hang', '3')], 2, read=clips.kills_itself): print(x, flush=True)\n")
    for lines in (1, 2):
        run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
        for _ in range(lines):
            run.stdout.readline()
        time.sleep(0.3)
        os.killpg(run.pid, how) if how != signal.SIGKILL else run.kill()
        started = time.monotonic()
        error = run.communicate(timeout=20)[1]  # at its end when no process holds the other end any more
        assert time.monotonic() - started < 8 and run.returncode == (-how if how == signal.SIGKILL else 128 + how)
        if how == signal.SIGKILL and error.endswith("EOFError: Ran out of input\n"):
            continue  # Python's own, of a decoder whose parent was killed before it had told what to import
        assert "Traceback" not in error and error.count("\n") == (0 if how == signal.SIGKILL else 2), error
