"""The parts of a Transformer by PyTorch, and a whole Llama by transformers: scores, loss
and the length of every gradient. Inputs and weights are waves, which the tests in Rust
make again by the same formula."""
import math

import torch
import torch.nn.functional as F
from common import versions, write_json
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

torch.set_default_dtype(torch.float64)


def wave(phase, *shape):
    return torch.sin(0.7 * torch.arange(math.prod(shape)) + phase).view(shape)


def flat(t):
    return t.detach().flatten().tolist()


out = {"versions": versions("transformers")}
for name, size in [("norm", 1.0), ("norm_tiny", 1e-3)]:
    x, w = wave(1, 2, 3, 8) * size, wave(2, 8)
    out[name] = flat(F.rms_norm(x, (8,), w, 1e-6))

x = wave(3, 1, 2, 5, 8)
angle = torch.outer(torch.arange(5.0), 10_000.0 ** (-torch.arange(0, 8, 2) / 8))
angle = torch.cat([angle, angle], -1)[None]
out["rotate"] = flat(apply_rotary_pos_emb(x, x, angle.cos(), angle.sin())[0])

q, k = 2 * wave(4, 1, 2, 5, 8), 2 * wave(5, 1, 2, 5, 8)
one = torch.eye(5).expand(1, 2, 5, 5)
out["look"] = flat(F.scaled_dot_product_attention(q, k, one, is_causal=True))

x, gate, up, down = wave(10, 4, 3), wave(11, 5, 3), wave(12, 5, 3), wave(13, 3, 5)
out["swiglu"] = flat(F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))

z = (3 * wave(6, 2, 3, 7)).requires_grad_()
loss = F.cross_entropy(z.flatten(0, 1), torch.arange(6))
loss.backward()
out |= {"loss": loss.item(), "dz": flat(z.grad)}

x, w = wave(7, 4, 3).requires_grad_(), wave(8, 5, 3).requires_grad_()
F.linear(x, w).backward(wave(9, 4, 5))
out |= {"dx": flat(x.grad), "dw": flat(w.grad)}

config = LlamaConfig(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    attn_implementation="eager",
)
model = LlamaForCausalLM(config).double()
named = sorted(model.named_parameters())
with torch.no_grad():
    for i, (name, p) in enumerate(named):
        w = wave(i, *p.shape)
        p.copy_(1 + 0.1 * w if p.dim() == 1 else 0.4 * w)
ids = (torch.arange(14) * 5 % 13).view(2, 7)
logits = model(ids[:, :-1]).logits
loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
loss.backward()
out |= {"logits": flat(logits), "whole_loss": loss.item()}
out["gradients"] = {name: p.grad.norm().item() for name, p in named}
write_json("ch06_transformer.json", out)
