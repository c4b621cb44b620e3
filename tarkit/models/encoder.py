"""The vision encoder: SigLIP's ViT, with an optional convolutional stem for the miniature.

Source: paper Sec. 4.1 (siglip2-so400m-patch14-384). Without a stem, layout and key names are the
published ones; the transformer blocks here also serve TA-Tok's decoder.

Letters: B pictures, N positions (grid**2), D width, T caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from tarkit.config import Config, Count, Size
from tarkit.models.key_bias import without_gradient


class EncoderArch(Config):
    """Sizes of the encoder; the defaults are siglip2-so400m-patch14-384's (428M values)."""

    size_px: Size = 384
    patch_px: Size = 14
    width: Size = 1152
    layers: Count = 27
    heads: Count = 16
    mlp_width: Size = 4304
    stem_channels: tuple[Size, ...] = Field(default=(), max_length=16)
    """Widths of the stem's steps, each a stride-2 and a stride-1 convolution, both normalised. The
    patch embedding after them covers the remaining part of `patch_px`. Empty: the published patch
    embedding. A plain ViT learns too slowly on two cores: in a prototype it recognised .13 of the
    shapes after 16k pictures, with a stem .99."""
    head: bool = True
    """Whether there is an attention pool, for the vector of a whole picture."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> EncoderArch:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        if self.patch_px > self.size_px:
            raise ValueError(f"patch_px = {self.patch_px} is more than size_px = {self.size_px}")
        return self

    @property
    def grid(self) -> int:
        """Positions along one side; pixels that do not fill a patch are dropped (384 -> 27)."""
        return self.size_px // self.patch_px


class VitAttention(nn.Module):
    """Full multi-head attention with four separate, biased projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        keys = F.linear(x, self.k_proj.weight, without_gradient(self.k_proj.bias))
        q, k, v = (
            projected.view(B, N, self.heads, D // self.heads).transpose(1, 2)
            for projected in (self.q_proj(x), keys, self.v_proj(x))
        )
        out: Tensor = self.out_proj(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
        )
        return out


class VitMlp(nn.Module):
    """fc2(gelu_tanh(fc1 x))."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class VitBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.self_attn = VitAttention(width, heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = VitMlp(width, mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VitLayers(nn.Module):
    """A stack of blocks under the published name `encoder.layers`."""

    def __init__(self, layers: int, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VitBlock(width, heads, mlp_width) for _ in range(layers))


class VitEmbeddings(nn.Module):
    """Pixels to positions: (B, 3, H, W) -> (B, N, D), row-major, no class token."""

    def __init__(self, arch: EncoderArch) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        width = 3
        for channels in arch.stem_channels:
            for source, step in ((width, 2), (channels, 1)):
                stem += [
                    nn.Conv2d(source, channels, 3, stride=step, padding=1),
                    nn.GroupNorm(min(8, channels), channels),
                    nn.GELU(),
                ]
            width = channels
        if stem:
            self.stem = nn.Sequential(*stem)
        patch = arch.patch_px // 2 ** len(arch.stem_channels)
        if patch * 2 ** len(arch.stem_channels) != arch.patch_px:
            raise ValueError(
                f"{len(arch.stem_channels)} stem steps do not divide patch_px={arch.patch_px}"
            )
        self.patch_embedding = nn.Conv2d(width, arch.width, patch, stride=patch)
        self.position_embedding = nn.Embedding(arch.grid**2, arch.width)
        # As SigLIP starts it: at nn.Embedding's own unit spread, positions would drown the pixels.
        nn.init.normal_(self.position_embedding.weight, std=arch.width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels) if hasattr(self, "stem") else pixels
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        return x + self.position_embedding.weight


class VitAttentionPool(nn.Module):
    """One learned query attends to all positions (B, N, D), then an MLP: the vector (B, D)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = VitMlp(width, mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        probe = self.probe.expand(x.shape[0], -1, -1)
        query, key, value = self.attention.in_proj_bias.chunk(3)
        biases = {"in_proj_bias": torch.cat([query, without_gradient(key), value])}
        h = functional_call(self.attention, biases, (probe, x, x), {"need_weights": False})[0]
        out: Tensor = (h + self.mlp(self.layernorm(h)))[:, 0]
        return out


class VisionEncoder(nn.Module):
    """SigLIP's vision tower on pixels in [-1, 1]."""

    def __init__(self, arch: EncoderArch) -> None:
        super().__init__()
        self.arch = arch
        self.embeddings = VitEmbeddings(arch)
        self.encoder = VitLayers(arch.layers, arch.width, arch.heads, arch.mlp_width)
        self.post_layernorm = nn.LayerNorm(arch.width, eps=1e-6)
        if arch.head:
            self.head = VitAttentionPool(arch.width, arch.heads, arch.mlp_width)

    def features(self, pixels: Tensor, *, layer: int = -1) -> Tensor:
        """Hidden state (B, N, D) number `layer` of [embeddings, block 0, block 1, ...].

        No final norm is applied. `layer=-2` is the output of the last block but one; later blocks
        are not run.
        """
        state: Tensor = self.embeddings(pixels)
        for block in self._blocks_to(layer):
            state = block(state)
        return state

    def hidden_states(self, pixels: Tensor, *, layer: int = -1) -> list[Tensor]:
        """The hidden states (B, N, D) from the embeddings to `layer`, inclusive."""
        states: list[Tensor] = [self.embeddings(pixels)]
        for block in self._blocks_to(layer):
            states.append(block(states[-1]))
        return states

    def _blocks_to(self, layer: int) -> Sequence[nn.Module]:
        """The blocks whose outputs are the hidden states 1 to `layer`."""
        blocks = list(self.encoder.layers)
        return blocks[: layer if layer >= 0 else len(blocks) + 1 + layer]

    def pool(self, features: Tensor) -> Tensor:
        """Last hidden state (B, N, D) -> the vector (B, D) to compare with a caption's."""
        out: Tensor = self.head(self.post_layernorm(features))
        return out


class TextTower(nn.Module):
    """SigLIP's text tower: ids (B, T) and mask (B, T), 1 at real tokens, -> vectors (B, D).

    Positions are learned, attention is not causal, and the mean over the real tokens is projected
    to the vision encoder's width.
    """

    def __init__(
        self, *, vocab_size: int, length: int, width: int, layers: int, heads: int, out_width: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(length, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        self.encoder = VitLayers(layers, width, heads, 4 * width)
        self.final_layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out_width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        for block in self.encoder.layers:
            # Padding is attended to as a zero vector: captions of a batch are of similar length.
            x = block(x * mask[..., None])
        x = self.final_layer_norm(x) * mask[..., None]
        out: Tensor = self.head(x.sum(1) / mask.sum(1, keepdim=True))
        return out


def sigmoid_contrastive_loss(
    pictures: Tensor, captions: Tensor, same: Tensor, log_scale: Tensor, bias: Tensor
) -> Tensor:
    """SigLIP's loss () over all pairs of a batch.

    `pictures`, `captions`: (B, D). `same`: (B, B) bool, whether caption j is also picture i's:
    equal captions are positives of each other. Source: Zhai et al. 2023, Alg. 1.
    """
    logits = F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T
    logits = logits * log_scale.exp() + bias
    signs = same.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / len(pictures)
