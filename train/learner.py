"""The model as training calls it: three methods, each one pass that also a sharded model can run.

Whoever trains calls `see` once a batch, `masses` for ROUTE, then `log_probs`, and goes backward.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from la_trt.model import MassQuery, QwenVL
from train.batch import IGNORE, Batch


class Learner(nn.Module):
    """A `QwenVL` with what is frozen in it.

    Without `train_vision` the vision tower and the merger stay as they are. `rows`: of embedding
    and head only these rows are trained (paper, section 5: those of the added tokens): whoever
    steps zeroes the gradients of all others and decays none (`Trainee`).
    """

    def __init__(
        self, model: QwenVL, *, train_vision: bool = False, rows: Iterable[int] | None = None
    ) -> None:
        super().__init__()
        self.vlm = model
        self.train_vision = train_vision
        self.rows = None if rows is None else tuple(sorted(rows))
        model.requires_grad_(True)
        model.visual.requires_grad_(train_vision)

    def see(self, batch: Batch) -> Tensor:
        """Visual embeddings (M, E) of the batch's images.

        Without any the tower sees a blank block all the same, so that processes stay in step.
        """
        pixels_PD, grid_N3 = batch.pixel_values_PD, batch.image_grid_thw_N3
        num = int(grid_N3.prod(1).sum())
        if not num:
            merge = self.vlm.config.vision.spatial_merge_size
            pixels_PD = pixels_PD.new_zeros((merge**2, pixels_PD.shape[1]))
            grid_N3 = torch.tensor([[1, merge, merge]])
        with torch.set_grad_enabled(self.train_vision and torch.is_grad_enabled()):
            visual_ME: Tensor = self.vlm.vision(pixels_PD, grid_N3)
            return visual_ME if num else visual_ME[:0].clone()

    def masses(self, batch: Batch, query: MassQuery, visual_ME: Tensor) -> Tensor:
        """(B, Q, N) float32: attention of the queries on the keys, mean over layers and heads."""
        embeds_BSE = self.vlm.embed(batch.input_ids_BS, batch.visual_row_BS, visual_ME)
        output = self.vlm.decoder(
            embeds_BSE, batch.position_ids_3BS, kv_copies=batch.copies, mass=query
        )
        assert output.mass_LBQN is not None
        mean_BQN: Tensor = output.mass_LBQN.mean(0)
        return mean_BQN

    def log_probs(self, batch: Batch, visual_ME: Tensor) -> Tensor:
        """(N,) log-probabilities of the batch's targets, in at least float32, sequence by
        sequence: `split(batch.counts)` gives each sequence's."""
        embeds_BSE = self.vlm.embed(batch.input_ids_BS, batch.visual_row_BS, visual_ME)
        output = self.vlm.decoder(embeds_BSE, batch.position_ids_3BS, kv_copies=batch.copies)
        learned_BS = batch.targets_BS != IGNORE
        logits_NV = self.vlm.logits(output.hidden_BSE[learned_BS])
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        found_N = -F.cross_entropy(logits_NV, batch.targets_BS[learned_BS], reduction="none")
        return found_N + visual_ME[:0].sum()  # 0, but the way back leads through the tower too

    def row_weights(self) -> list[Tensor]:
        """Embedding and head where only rows of them are trained, else nothing."""
        if self.rows is None:
            return []
        tied = self.vlm.config.text.tie_word_embeddings
        embed: Tensor = self.vlm.model.embed_tokens.weight
        return [embed] if tied else [embed, self.vlm.lm_head.weight]
