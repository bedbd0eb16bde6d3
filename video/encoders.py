"""CLIP and CLAP, the frozen encoders: pictures, sounds and class names -> vectors of unit length.

CLIP ViT-L/14 with OpenAI's weights comes from open_clip, CLAP (an HTSAT audio encoder, RoBERTa for text) from
laion_clap. Which file of weights is read, weights.py decides; without a file they are random, for dry runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.files import reading, reason, regular
from common.released import read_checkpoint, weights_of
from data.layout import ENCODERS
from uwav import TeacherConfig
from video import SAMPLE_RATE
from video.weights import activation as told_activation

CLIP_MODEL = ENCODERS["clip"].model
ROBERTA_VOCABULARY = 50_265  # tokens: laion_clap goes on with 5 if the tokenizer's files cannot be had

# ---- Reading files of weights --------------------------------------------------------------------

def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint: .safetensors, a torch file (of CLAP: a training checkpoint). Raises FileNotFoundError or
    ValueError naming the file."""
    with reading(path, "not a file of weights ({cause})"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return weights_of(load_file(regular(path)))
        return weights_of(read_checkpoint(path))


def told_by_scale(name: str, path: Path) -> str:
    """Whether weights may be the authors': their teacher holds the raw (log) scale of logits of the ones they had."""
    key, released = dict(clip=("logit_scale", TeacherConfig.visual_scale),
                         clap=("logit_scale_a", TeacherConfig.audio_scale))[name]
    scale = float(read_state_dict(path)[key])
    return (f"{name.upper()}: {key} of {path.name} is {scale:.4f}, that of the released teacher {released:.4f}: the "
            f"authors {'may have' if f'{scale:.4f}' == f'{released:.4f}' else 'had not'} used these weights")


# ---- CLIP ----------------------------------------------------------------------------------------

def import_torchvision() -> None:
    """open_clip and laion_clap import torchvision, whose registry build cannot load beside a CPU build of PyTorch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        # Nobody here calls these two operators: it is enough that they are declared. The library must stay alive.
        import_torchvision.operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            import_torchvision.operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Both libraries log and warn of their own affairs while they are imported and built."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.ExitStack() as end:
        end.callback(logging.disable, logging.NOTSET)
        warnings.simplefilter("ignore")
        yield


class ClipEncoder:
    """CLIP of open_clip: images and texts -> (N, 768), unit length."""

    @quiet()
    def __init__(self, weights: Path | None, device: str | torch.device = "cpu", model: str | None = None,
                 activation: str | None = None):
        """model: of open_clip; None: ours, with an activation that weights.py finds out unless it is given."""
        import_torchvision()
        import open_clip

        if model is None and (activation or told_activation(str(weights), weights)) == "gelu":
            model = CLIP_MODEL.removesuffix("-quickgelu")
        self.device, name = torch.device(device), model or CLIP_MODEL
        torch.manual_seed(0)  # random weights are the same each time
        self.model = open_clip.create_model(name, pretrained=None)
        if weights is not None:
            _load(self.model, read_state_dict(weights), weights, f"CLIP {name}")
        self.model = self.model.to(self.device).eval()
        constants = torch.tensor([open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD], device=self.device)
        self.mean, self.std = constants.view(2, 1, 3, 1, 1)  # (1, 3, 1, 1) each
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def images(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 224, 224, 3) uint8, as `decode.square_image` makes them -> (N, 768)."""
        return self.embed(torch.from_numpy(pixels).to(self.device)).cpu().numpy()

    def embed(self, pixels: Tensor) -> Tensor:
        """The same on tensors; what export_onnx.py traces."""
        x = pixels.permute(0, 3, 1, 2).float() / 255  # (N, 3, 224, 224) in [0, 1]
        with half_precision(self.device):
            y = self.model.encode_image((x - self.mean) / self.std)
        return F.normalize(y.float(), dim=-1)  # (N, 768)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """C texts -> (C, 768); single precision also on a GPU."""
        return self.embed_tokens(self.tokenizer(texts).to(self.device)).cpu().numpy()

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(N, 77) -> (N, 768); what export_onnx.py traces."""
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)

    def write_tokenizer(self, path: Path) -> None:
        """Its tokenizer as a file that the library tokenizers reads, in whatever language."""
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

        vocabulary, ranks = self.tokenizer.encoder, self.tokenizer.bpe_ranks
        words = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # as open_clip splits
        begin, end = list(vocabulary)[-2:]
        file = Tokenizer(models.BPE(vocabulary, sorted(ranks, key=ranks.get), end_of_word_suffix="</w>"))
        file.normalizer = normalizers.Lowercase()  # the rest of its clean-up is `cleaned` of parse.py
        file.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(words), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        file.post_processor = processors.TemplateProcessing(
            f"{begin} $A {end}", special_tokens=[(x, vocabulary[x]) for x in (begin, end)])
        file.enable_truncation(TOKENS)
        file.enable_padding(length=TOKENS, pad_id=0, pad_token=list(vocabulary)[0])
        file.save(str(path))


TOKENS = 77  # of a text, for CLIP and CLAP


def cpu_threads() -> int:
    """How many batches to encode at a time, each by one thread: so the numbers do not depend on the cores' number."""
    torch.set_num_threads(1)
    return os.cpu_count() or 1


def half_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")


def _load(model: nn.Module, state: dict[str, Tensor], path: Path, what: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: not weights of {what} ({' '.join(str(error).split())[:200]} ...)") from None


# ---- CLAP ----------------------------------------------------------------------------------------

CLAP_SAMPLES = 480_000  # what the audio encoder reads: 10 s at 48 kHz; a second is repeated ten times
FFT, HOP = 1024, 480  # samples
MEL_BINS, MEL_LOW, MEL_HIGH = 64, 50, 14_000  # Hz


def clap_package() -> None:
    """Make laion_clap's `clap_module` importable without running laion_clap itself, which asks a hub for tokenizers."""
    import_torchvision()
    folder = importlib.util.find_spec("laion_clap").submodule_search_locations[0]
    if folder not in sys.path:
        sys.path.append(folder)


class ClapEncoder(nn.Module):
    """The audio half of CLAP: sounds -> (N, 512), unit length. Fusion or not, HTSAT-tiny or -base: the weights tell."""

    @quiet()
    def __init__(self, weights: Path | None, device: str | torch.device = "cpu"):
        super().__init__()
        clap_package()
        import librosa
        from clap_module.htsat import create_htsat_model

        state = None if weights is None else {
            k: v for k, v in read_state_dict(weights).items() if k.startswith(("audio_branch.", "audio_projection."))}
        self.fusion, size, width = clap_architecture(state, weights)
        config = types.SimpleNamespace(
            audio_length=1024, clip_samples=CLAP_SAMPLES, mel_bins=MEL_BINS, sample_rate=SAMPLE_RATE, window_size=FFT,
            hop_size=HOP, fmin=MEL_LOW, fmax=MEL_HIGH, class_num=527, model_type="HTSAT", model_name=size)
        torch.manual_seed(0)  # random weights are the same each time
        self.audio_branch = create_htsat_model(config, self.fusion, "aff_2d" if self.fusion else "None")
        self.audio_projection = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512))
        if state is not None:
            _load(self, state, weights, f"CLAP with HTSAT-{size}")
        if self.fusion:  # trained on another mel, of torchaudio in laion_clap: HTK's scale, filters not normalised
            mel = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=MEL_BINS, fmin=MEL_LOW, fmax=MEL_HIGH, htk=True,
                                      norm=None)  # (64, 513)
            self.audio_branch.logmel_extractor.melW.data = torch.from_numpy(mel.T.copy())
        for part in (self.audio_branch.spectrogram_extractor, self.audio_branch.logmel_extractor):
            # Powers of a spectrum exceed the range of half precision, and quiet bands drown in its rounding.
            for kind in ("cuda", "cpu"):
                part.forward = torch.autocast(kind, enabled=False)(part.forward)
        self.to(device).eval()

    @torch.inference_mode()
    def sounds(self, wave: np.ndarray) -> np.ndarray:
        """(N, samples) float32 at 48 kHz, at most 10 s -> (N, 512)."""
        return self(torch.from_numpy(wave).to(self.audio_projection[0].weight.device)).cpu().numpy()

    def forward(self, x: Tensor) -> Tensor:
        """(N, samples) -> (N, 512), as the library goes about it: 16-bit samples, repeated to 10 s, the rest silent."""
        x = (x.clamp(-1, 1) * 32767).trunc() / 32767  # (N, samples); WebGPU has no 16-bit numbers
        x = x.repeat(1, CLAP_SAMPLES // x.shape[1])
        x = F.pad(x, (0, CLAP_SAMPLES - x.shape[1]))  # (N, 480000)
        with half_precision(x.device):
            if self.fusion:  # of four views of a long clip, clips of 10 s or less have the first only
                branch = self.audio_branch
                mel = branch.logmel_extractor(branch.spectrogram_extractor(x)).expand(-1, 4, -1, -1)  # (N, 4, 1001, 64)
                mel = branch.bn0(mel.transpose(1, 3)).transpose(1, 3)  # normalises each mel band
                y = branch.forward_features(branch.reshape_wav2img(mel), longer_idx=[])["embedding"]
            else:
                y = self.audio_branch({"waveform": x}, device=x.device)["embedding"]  # (N, 768 or 1024)
            y = self.audio_projection(y)
        return F.normalize(y.float(), dim=-1)  # (N, 512)


def clap_architecture(state: dict[str, Tensor] | None, weights: Path | None) -> tuple[bool, str, int]:
    """(fusion, size of HTSAT, its output width) as the weights have them; the default checkpoint's without weights."""
    if state is None:
        return False, "tiny", 768
    sizes = {96: ("tiny", 768), 128: ("base", 1024)}
    patch = state.get("audio_branch.patch_embed.proj.weight")
    if patch is None or len(patch) not in sizes:
        raise ValueError(f"{weights}: not weights of CLAP with HTSAT-tiny or HTSAT-base")
    return "audio_branch.patch_embed.mel_conv2d.weight" in state, *sizes[len(patch)]


class ClapTextEncoder(nn.Module):
    """The text half of CLAP, as laion_clap builds it: texts -> (N, 512), unit length. Needs roberta-base (configuration
    and tokenizer) from the hub or its cache."""

    @quiet()
    def __init__(self, weights: Path | None, device: str | torch.device = "cpu"):
        super().__init__()
        state = None if weights is None else read_state_dict(weights)
        fusion, size, _ = clap_architecture(state, weights)
        import_torchvision()
        try:
            import laion_clap

            torch.manual_seed(0)  # random weights are the same each time
            whole = laion_clap.CLAP_Module(enable_fusion=fusion, amodel=f"HTSAT-{size}", device=str(device))
            tokens = len(whole.tokenize)
            cause = f"its tokenizer has {tokens} tokens instead of {ROBERTA_VOCABULARY}"
        except OSError as error:  # also of a torchaudio that does not fit this PyTorch
            tokens, cause = 0, reason(error)
        if tokens != ROBERTA_VOCABULARY:
            raise FileNotFoundError(
                f"CLAP's text encoder needs roberta-base, which is not in the hub's cache and cannot be downloaded "
                f"({cause}): run this command on a machine with a network, or bring its folder ~/.cache/huggingface")
        if state is not None:
            state.pop("text_branch.embeddings.position_ids", None)  # newer transformers make it themselves
            _load(whole.model, state, weights, f"CLAP with HTSAT-{size}")
        self.branch, self.projection, self.tokenizer = (
            whole.model.text_branch, whole.model.text_projection, whole.tokenize)
        self.to(device).eval()

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """C texts -> (C, 512)."""
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return self(tokens["input_ids"].to(self.projection[0].weight.device)).cpu().numpy()

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, 77) -> (N, 512)."""
        known = (tokens != self.tokenizer.pad_token_id).long()  # (N, 77)
        return F.normalize(self.projection(self.branch(tokens, known)["pooler_output"]).float(), dim=-1)

    def write_tokenizer(self, path: Path) -> None:
        """As ClipEncoder.write_tokenizer."""
        from tokenizers import Tokenizer
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        inner = getattr(self.tokenizer, "backend_tokenizer", None) or convert_slow_tokenizer(self.tokenizer)
        file = Tokenizer.from_str(inner.to_str())
        file.enable_truncation(TOKENS)
        file.enable_padding(length=TOKENS, pad_id=self.tokenizer.pad_token_id, pad_token=self.tokenizer.pad_token)
        file.save(str(path))


def clap_texts(texts: list[str], weights: Path | None, device: str | torch.device = "cpu") -> np.ndarray:
    """C texts -> (C, 512), unit length; without weights random vectors, for which nothing need be downloaded."""
    if weights is None:
        return F.normalize(torch.randn(len(texts), 512, generator=torch.Generator().manual_seed(0)), dim=-1).numpy()
    return ClapTextEncoder(weights, device).texts(texts)
