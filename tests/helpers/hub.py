"""A Hugging Face cache with toy models under the names that laion_clap asks for, so that the real library runs offline."""

import json
import string
from pathlib import Path

REVISION = "0" * 40
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *string.ascii_letters, *string.digits]


def snapshot(home: Path, name: str) -> Path:
    """The folder of a model in the cache, as if `name` had been downloaded."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION)
    return folder


def make(home: Path) -> None:
    """Character-level tokenizers, and a RoBERTa of one layer, 768 wide, with random weights."""
    for name in ("roberta-base", "facebook/bart-base"):
        folder = snapshot(home, name)
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    (snapshot(home, "bert-base-uncased") / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    from video import encoders

    encoders.import_torchvision()
    import torch
    from transformers import RobertaConfig, RobertaModel

    torch.manual_seed(1)
    config = RobertaConfig(vocab_size=len(VOCABULARY), num_hidden_layers=1, intermediate_size=64, max_position_embeddings=514,
                           type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    RobertaModel(config).save_pretrained(home / "hub/models--roberta-base/snapshots" / REVISION)
