"""AR-DTok: a causal transformer that predicts image-VQ codes from TA-Tok's features.

Source: paper Sec. 3.2, Eq. 4, Fig. 4a; layout and key names of the released files. They use learned
absolute positions over the whole sequence where the paper's "LLaMA as in LlamaGen" has rotary ones.

Codes are drawn with it in ar_decoding.py.

Letters: B pictures, n condition positions, N codes to draw, D width, C condition width,
V image-VQ codes, h heads; R rows and T new positions of a pass with caches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from tarkit.config import Config, Count, Size


class ArDtokArch(Config):
    """Sizes of AR-DTok; the defaults are the released 256 px model's (llama-abs-LP, 654M)."""

    layers: Count = 30
    heads: Count = 20
    kv_heads: Count | None = None
    width: Size = 1280
    multiple_of: Size = 256
    ffn_multiplier: PositiveFloat | None = None
    norm_eps: float = 1e-5
    condition_width: Size = 1152
    vocab_size: Size = 16384
    num_codes: Size = 256
    """N: 256, 1024 or 4096 codes for 256, 512 or 1024 pixels."""
    max_condition: Size = 729
    token_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the values of all inputs, of condition and codes, that are set to zero."""
    residual_dropout: float = Field(default=0.1, ge=0, lt=1)
    ffn_dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> ArDtokArch:
        kv_heads = self.kv_heads or self.heads
        if self.width % self.heads or self.heads % kv_heads:
            raise ValueError(
                f"heads = {self.heads} must divide width = {self.width}, and kv_heads = {kv_heads} "
                "must divide heads"
            )
        return self

    @property
    def ffn_width(self) -> int:
        width = int(2 * (4 * self.width) / 3)
        if self.ffn_multiplier is not None:
            width = int(self.ffn_multiplier * width)
        return self.multiple_of * -(-width // self.multiple_of)

    @property
    def side(self) -> int:
        return round(self.num_codes**0.5)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class Place(NamedTuple):
    """Where the T positions of a pass lie in the caches: one after the other, in every row alike
    (`positions` is a slice and `mask` None), or for each row on its own ((R, T), with a mask)."""

    positions: slice | Tensor
    live: int
    """Positions of the caches, from the first on, that hold something in any row."""
    mask: Tensor | None = None
    """(R, 1, T, live) bool: whether a position attends to one of the cache."""


class KeyValueCache:
    """Keys and values of one layer, allocated for the whole sequence at once.

    `stored` is (R, 2 heads, positions, D / h): first the heads of the keys, then as many of the
    values.
    """

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        # Zeros: what a mask leaves out is multiplied by zero, which a NaN in free memory survives.
        self.stored = like.new_zeros(shape)

    def write(self, new: Tensor, place: Place) -> Tensor:
        """Store (R', 2 heads, T, D / h) in the first R' rows; returns all that they hold."""
        rows = len(new)
        if isinstance(place.positions, slice):
            self.stored[:rows, :, place.positions] = new
        else:
            row = torch.arange(rows, device=new.device)[:, None]
            self.stored[row, :, place.positions] = new.transpose(1, 2)
        return self.stored[:rows, :, : place.live]


class ArDtokAttention(nn.Module):
    """Causal grouped-query attention, (B, T, D) -> (B, T, D), with one projection for q, k, v."""

    def __init__(self, arch: ArDtokArch) -> None:
        super().__init__()
        self.heads = arch.heads
        self.kv_heads = arch.kv_heads or arch.heads
        self.head_width = arch.width // arch.heads
        self.wqkv = nn.Linear(
            arch.width, (self.heads + 2 * self.kv_heads) * self.head_width, bias=False
        )
        self.wo = nn.Linear(arch.width, arch.width, bias=False)

    def forward(self, x: Tensor, cache: KeyValueCache | None, place: Place | None) -> Tensor:
        B, T, D = x.shape
        qkv = self.wqkv(x).view(B, T, -1, self.head_width).transpose(1, 2)
        q, kv = qkv.split([self.heads, 2 * self.kv_heads], dim=1)
        if cache is not None and place is not None:
            kv = cache.write(kv, place)
        k, v = kv.chunk(2, dim=1)
        mask = place.mask if place else None
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=self.kv_heads != self.heads,
        )
        result: Tensor = self.wo(out.transpose(1, 2).reshape(B, T, D))
        return result


class ArDtokFeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, arch: ArDtokArch) -> None:
        super().__init__()
        self.w1 = nn.Linear(arch.width, arch.ffn_width, bias=False)
        self.w3 = nn.Linear(arch.width, arch.ffn_width, bias=False)
        self.w2 = nn.Linear(arch.ffn_width, arch.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class ArDtokBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, arch: ArDtokArch) -> None:
        super().__init__()
        self.attention = ArDtokAttention(arch)
        self.feed_forward = ArDtokFeedForward(arch)
        self.attention_norm = RMSNorm(arch.width, arch.norm_eps)
        self.ffn_norm = RMSNorm(arch.width, arch.norm_eps)
        self.residual_dropout = nn.Dropout(arch.residual_dropout)
        self.ffn_dropout = nn.Dropout(arch.ffn_dropout)

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, place: Place | None = None
    ) -> Tensor:
        h = x + self.residual_dropout(self.attention(self.attention_norm(x), cache, place))
        out: Tensor = h + self.ffn_dropout(self.feed_forward(self.ffn_norm(h)))
        return out


class ArDtok(nn.Module):
    """p(y_t | z_q, y_<t) over image-VQ codes in row-major order."""

    def __init__(self, arch: ArDtokArch) -> None:
        super().__init__()
        self.arch = arch
        self.tok_embeddings = nn.Embedding(arch.vocab_size, arch.width)
        self.clip_proj = nn.Linear(arch.condition_width, arch.width)
        self.abs_pe = nn.Parameter(
            torch.zeros(1, arch.max_condition + arch.num_codes - 1, arch.width)
        )
        self.token_dropout = nn.Dropout(arch.token_dropout)
        self.layers = nn.ModuleList(ArDtokBlock(arch) for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width, arch.norm_eps)
        self.output = nn.Linear(arch.width, arch.vocab_size, bias=False)

    def reset_parameters(self) -> None:
        """Initialise for training: normal(0, 0.02), outputs to the residual scaled by depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or name.endswith("abs_pe"):
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                if name.endswith("abs_pe"):
                    nn.init.normal_(parameter, std=0.02)
                continue
            residual = name.endswith(("wo.weight", "w2.weight"))
            scale = (2 * self.arch.layers) ** -0.5 if residual else 1.0
            nn.init.normal_(parameter, std=0.02 * scale)

    def logits(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Teacher-forced (B, n, C), (B, N) -> (B, N, V); position i predicts code i.

        Condition positions come first and share the causal order and the position table, so at a
        coarser scale the codes use earlier rows of it.
        """
        n = condition.shape[1]
        x = torch.cat([self.clip_proj(condition), self.tok_embeddings(codes[:, :-1])], dim=1)
        x = self.token_dropout(x + self.abs_pe[:, : x.shape[1]])
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.output(self.norm(x[:, n - 1 :]))
        return out

    def forward(self, condition: Tensor, codes: Tensor) -> Tensor:
        """Mean cross-entropy over all N codes (Eq. 4)."""
        logits = self.logits(condition, codes)
        return F.cross_entropy(logits.flatten(0, 1).float(), codes.flatten())


def resize_positions(table: Tensor, *, max_condition: int, num_codes: int) -> Tensor:
    """A position table (1, n + N - 1, D) for N' codes: (1, n + N' - 1, D), n = `max_condition`.

    With s = sqrt(N), row n + t of a table belongs to the code of cell (t div s, t mod s) of an
    s x s grid, where the condition has n positions (scale 1). These rows are interpolated over the
    grid: cell (i, j) of the new one takes the bilinear value at

        ((i + 1/2) s / s' - 1/2, (j + 1/2) s / s' - 1/2), each clamped to [0, s - 1].

    The last code is never an input and has no row: its cell takes the value of the cell on its
    left. The rows of the condition stay, and so does the whole table where N' = N. At scales 2 and
    3 the condition is shorter: their first codes use rows that the condition has at scale 1, so
    these stay too, and training has to adapt them. Raises ValueError where N or N' is no square.
    """
    width = table.shape[-1]
    old = table.shape[1] - max_condition + 1
    side, new_side = round(old**0.5), round(num_codes**0.5)
    if side**2 != old or new_side**2 != num_codes:
        raise ValueError(f"{old} and {num_codes} codes: each must be a square number")
    if num_codes == old:
        return table
    condition, rows = table[:, :max_condition], table[:, max_condition:]
    grid = torch.cat([rows, rows[:, -1:]], dim=1).transpose(1, 2).reshape(1, width, side, side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bilinear", align_corners=False)
    return torch.cat([condition, grid.flatten(2).transpose(1, 2)[:, :-1]], dim=1)
