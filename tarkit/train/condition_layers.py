"""What Dif-DTok trains of SANA: the layers that read the condition.

Source: paper Sec. 4.1: "cross attention and condition embedding layers" alone are trained.

Letters: B pictures, C h w latents, n condition positions, W condition width, T training steps of
the schedule.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from tarkit.train.parameters import save_trained_only

# Cross-attention (attn2) and the layers that embed the condition, as diffusers names them.
TRAINED = ("attn2.", "caption_projection.", "caption_norm.")
# Without a norm behind it, a bias of all keys alike changes no attention: its gradient is rounding,
# which CAME would scale up to whole steps, others on each machine.
WITHOUT_EFFECT = "attn2.to_k.bias"


class DifDtok(nn.Module):
    """SANA's transformer, whose trained parameters alone are in the state dict.

    The others come from the SANA that the training started from: a checkpoint is about a quarter of
    the model.
    """

    def __init__(self, transformer: Any, *, trained: Literal["condition", "all"]) -> None:
        super().__init__()
        self.transformer: Any = transformer
        frozen = () if transformer.config.qk_norm else (WITHOUT_EFFECT,)
        parts = TRAINED if trained == "condition" else ("",)
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(
                any(part in name for part in parts) and not name.endswith(frozen)
            )
        save_trained_only(self)

    def forward(self, latents: Tensor, condition: Tensor, mask: Tensor, timestep: Tensor) -> Tensor:
        """Noised latents (B, C, h, w), condition (B, n, W), its mask (B, n) and times (B,) in
        [0, T] -> the predicted velocity (B, C, h, w).
        """
        out: Tensor = self.transformer(
            latents,
            encoder_hidden_states=condition,
            encoder_attention_mask=mask,
            timestep=timestep * self.transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        return out
