"""Frozen in Time in PyTorch, to compare ours with: it computes what the published code computes.

Nothing but this file needs PyTorch. Modules are named as in the published checkpoints, so that
`frozen.checkpoint_layout` writes weights that load here. Axes are named as in
`common.backbones.divided_attention`; L and M are the tokens that look and those looked at.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def _fused(q_BHLK, k_BHMK, v_BHMK, mask=None, dropout=0.0):
    return functional.scaled_dot_product_attention(q_BHLK, k_BHMK, v_BHMK, mask, dropout)


def _written_out(q_BHLK, k_BHMK, v_BHMK, mask=None, dropout=0.0):
    scores = torch.einsum("bhlk,bhmk->bhlm", q_BHLK * q_BHLK.shape[-1] ** -0.5, k_BHMK)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = functional.dropout(scores.softmax(-1), dropout)
    return torch.einsum("bhlm,bhmk->bhlk", weights, v_BHMK)


FORMS = {"fused attention": _fused, "published form": _written_out}


class _DividedAttention(nn.Module):
    """The class token sees all tokens; patches see it, and their own frame or their own place."""

    def __init__(self, width, heads, axis, attend):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.attend = heads, attend
        self.order = {"space": (0, 2, 1, 3, 4), "time": (0, 3, 1, 2, 4)}[axis]

    def forward(self, x_BTD, frames):
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        own = self.attend(q[:, :, :1], k, v).transpose(1, 2).flatten(2)
        q, (k, v) = self._groups(q, frames), (self._seen(x, frames) for x in (k, v))
        groups = self.attend(q, k, v).unflatten(0, (len(x_BTD), -1))
        back = sorted(range(5), key=self.order.__getitem__)
        patches = groups.permute(back).permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)
        return self.proj(torch.cat((own, patches), 1))

    def _groups(self, x_BHTK, frames):
        """Patches (B * G, H, L, K) where the L of a group see each other."""
        return x_BHTK[:, :, 1:].unflatten(2, (frames, -1)).permute(self.order).flatten(0, 1)

    def _seen(self, x_BHTK, frames):
        """The same, behind a copy of the class token in every group."""
        groups = self._groups(x_BHTK, frames)
        own = x_BHTK[:, :, :1].repeat_interleave(len(groups) // len(x_BHTK), 0)
        return torch.cat((own, groups), 2)


class _Block(nn.Module):
    def __init__(self, width, heads, attend):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, 1e-6) for _ in range(3))
        self.attn = _DividedAttention(width, heads, "space", attend)
        self.timeattn = _DividedAttention(width, heads, "time", attend)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, frames):
        time = self.timeattn(self.norm3(x), frames)
        y = x + self.attn(self.norm1(x + time), frames)
        return y + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(y))))


class _Video(nn.Module):
    """Maps clips (B, F, 3, H, W) to class tokens (B, D)."""

    def __init__(self, video, attend):
        super().__init__()
        width, patches = video.width, (video.grid_size // video.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, video.max_frames, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, video.patch, video.patch)
        blocks = (_Block(width, video.heads, attend) for _ in range(video.depth))
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width, 1e-6)

    def forward(self, video_BFCHW):
        batch, frames = video_BFCHW.shape[:2]
        x = self.patch_embed.proj(video_BFCHW.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = x.unflatten(0, (batch, frames)) + self.pos_embed[:, None, 1:]
        x = (x + self.temporal_embed[:, :frames, None]).flatten(1, 2)
        own = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        x = torch.cat((own, x), 1)
        for block in self.blocks:
            x = block(x, frames)
        return self.norm(x)[:, 0]


class _TextLayer(nn.Module):
    def __init__(self, text, attend):
        super().__init__()
        width, self.heads, self.dropout, self.attend = text.width, text.heads, text.dropout, attend
        self.attention = nn.Module()
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            setattr(self.attention, name, nn.Linear(width, width))
        self.sa_layer_norm = nn.LayerNorm(width, 1e-12)
        self.output_layer_norm = nn.LayerNorm(width, 1e-12)
        self.ffn = nn.Module()
        self.ffn.lin1, self.ffn.lin2 = nn.Linear(width, text.hidden), nn.Linear(text.hidden, width)

    def forward(self, x, mask):
        dense = (self.attention.q_lin, self.attention.k_lin, self.attention.v_lin)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in dense)
        seen = self.attend(q, k, v, mask, self.dropout if self.training else 0.0)
        x = self.sa_layer_norm(x + self.attention.out_lin(seen.transpose(1, 2).flatten(2)))
        y = self.ffn.lin2(functional.gelu(self.ffn.lin1(x)))
        return self.output_layer_norm(x + functional.dropout(y, self.dropout, self.training))


class _Text(nn.Module):
    """Maps ids of word pieces (B, L), 0 for padding, to the first token (B, D): DistilBERT."""

    def __init__(self, text, pieces, attend):
        super().__init__()
        self.embeddings, self.transformer = nn.Module(), nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(pieces, text.width, padding_idx=0)
        self.embeddings.position_embeddings = nn.Embedding(text.positions, text.width)
        self.embeddings.LayerNorm = nn.LayerNorm(text.width, 1e-12)
        self.transformer.layer = nn.ModuleList(_TextLayer(text, attend) for _ in range(text.depth))
        self.dropout = text.dropout

    def forward(self, ids_BL):
        numbers = torch.arange(ids_BL.shape[1])
        x = self.embeddings.word_embeddings(ids_BL) + self.embeddings.position_embeddings(numbers)
        x = functional.dropout(self.embeddings.LayerNorm(x), self.dropout, self.training)
        for layer in self.transformer.layer:
            x = layer(x, (ids_BL != 0)[:, None, None])
        return x[:, 0]


class Frozen(nn.Module):
    """Both towers and the softmax loss, of the sizes of `frozen.model.FrozenModel`.

    Args:
        config: the keys of ``config.model`` in ``configs/frozen_base.py``.
        pieces: rows of the table of word pieces.
        form: of attention, one of `FORMS`.
    """

    def __init__(self, config, pieces, form):
        super().__init__()
        self.temperature = config.temperature
        self.text_model = _Text(config.text, pieces, FORMS[form])
        self.video_model = _Video(config.video, FORMS[form])
        self.txt_proj = nn.Sequential(nn.ReLU(), nn.Linear(config.text.width, config.embedding_dim))
        self.vid_proj = nn.Sequential(nn.Linear(config.video.width, config.embedding_dim))

    def forward(self, video_BFCHW, ids_BL):
        """Embeddings of clips, of length 1, and of captions, divided by the temperature."""
        video_BD = functional.normalize(self.vid_proj(self.video_model(video_BFCHW)), eps=1e-8)
        text_BD = functional.normalize(self.txt_proj(self.text_model(ids_BL)), eps=1e-8)
        return {"video": video_BD, "text": text_BD / self.temperature}

    def loss(self, video_BFCHW, ids_BL):
        """Cross-entropy of finding the clip of a caption plus that of the caption of a clip."""
        found = self(video_BFCHW, ids_BL)
        scores_BB, own_B = found["text"] @ found["video"].T, torch.arange(len(ids_BL))
        return functional.cross_entropy(scores_BB, own_B) + functional.cross_entropy(
            scores_BB.T, own_B
        )


class Runner:
    """The network and AdamW in one form of attention, on one batch.

    Args:
        model: the network.
        weights: NumPy arrays in the published layout.
        batch: clips (B, F, H, W, 3), float32, and int32 ids of word pieces (B, L).
        learning_rate, weight_decay: of AdamW.
    """

    def __init__(self, model, weights, batch, learning_rate, weight_decay):
        self.model = model
        model.load_state_dict({key: torch.tensor(x) for key, x in weights.items()})
        video_BFHWC, ids_BL = batch
        video_BFCHW = torch.tensor(video_BFHWC).permute(0, 1, 4, 2, 3).contiguous()
        self.inputs = (video_BFCHW, torch.tensor(ids_BL, dtype=torch.int64))
        # Without "fused" PyTorch takes several passes over all parameters.
        self.adam = torch.optim.AdamW(
            self.model.parameters(), learning_rate, weight_decay=weight_decay, fused=True
        )

    def forward(self):
        """Embeddings of clips and captions in evaluation mode."""
        self.model.eval()
        with torch.inference_mode():
            return {name: x.numpy() for name, x in self.model(*self.inputs).items()}

    def train(self):
        """Loss of one training step: forward, backward and update."""
        self.model.train()
        return self._step()

    def gradients(self):
        """Gradients of one step in which nothing is dropped, by published key."""
        self.model.eval()
        self._step()
        return {name: p.grad.numpy() for name, p in self.model.named_parameters()}

    def _step(self):
        self.adam.zero_grad()
        loss = self.model.loss(*self.inputs)
        loss.backward()
        self.adam.step()
        return loss.item()
