"""One training step in plain torch: row -> noise -> [noisy | clean] -> attention -> two losses -> one number.

L tokens in a row, S = 2L positions, V vocabulary, E hidden, F inside the MLP, H query and G key/value heads of D."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

ALPHA, BLOCK, MASK, LEAST_P = (
    0.3,
    16,
    100,
    1e-3,
)  # weight of the diffusion term; tokens denoised together; the mask's id
LAYERS, V, E, F, H, G, D, THETA, NORM_EPS = 2, 256, 64, 128, 4, 2, 16, 1e4, 1e-5


def draw_noise(supervised: Tensor) -> tuple[Tensor, Tensor]:
    """1. One level t for the row; each supervised token is masked with probability p [paper eq. 2]. z [L], p [L]."""
    p = torch.full([len(supervised) - 1], (1 - LEAST_P) * torch.rand(()).item() + LEAST_P)
    return (torch.rand(len(p)) < p) & supervised[:-1], p


def dual_stream_mask(length: int) -> Tensor:
    """2. Who sees whom in [noisy | clean]: [2L queries, 2L keys] bool."""
    position, clean = torch.arange(length).repeat(2), torch.arange(2 * length) >= length
    query, key, block = position[:, None], position[None, :], position // BLOCK
    own_block = ~clean[:, None] & ~clean & (block[:, None] == block)  # noisy sees its own block, in both directions
    blocks_before = ~clean[:, None] & clean & (block < block[:, None])  # and the clean tokens of the blocks before
    return own_block | blocks_before | (clean[:, None] & clean & (key <= query))  # clean sees clean, causally


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotary embedding of x [heads, S, D]; both halves of the row have the positions 0..L-1."""
    angle = position[:, None] * THETA ** (-torch.arange(0, D, 2, dtype=x.dtype) / D)
    one, two = x.chunk(2, -1)
    return torch.cat([one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()], -1)


def logits_of(ids: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """3. The network on the doubled row: ids [2L] -> [2L, V]. Weights have Megatron's names."""
    position, mask = torch.arange(len(ids) // 2).repeat(2), dual_stream_mask(len(ids) // 2)
    x = weights["embedding.word_embeddings.weight"][ids]
    for layer in (f"decoder.layers.{number}" for number in range(LAYERS)):
        normed = rms_norm(x, weights[f"{layer}.input_layernorm.weight"])
        qkv = (normed @ weights[f"{layer}.self_attention.linear_qkv.weight"].T).view(len(ids), G, H // G + 2, D)
        q, k, v = (part.flatten(1, 2).transpose(0, 1) for part in qkv.split([H // G, 1, 1], dim=2))
        q, k = rotate(q, position), rotate(k, position)
        seen = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)[0]
        x = x + seen.transpose(0, 1).flatten(1) @ weights[f"{layer}.self_attention.linear_proj.weight"].T
        normed = rms_norm(x, weights[f"{layer}.pre_mlp_layernorm.weight"])
        gate, up = (normed @ weights[f"{layer}.mlp.linear_fc1.weight"].T).chunk(2, -1)
        x = x + (silu(gate) * up) @ weights[f"{layer}.mlp.linear_fc2.weight"].T
    return rms_norm(x, weights["decoder.final_layernorm.weight"]) @ weights["output_layer.weight"].T


def one_step(rows: list[tuple[Tensor, ...]], weights: dict[str, Tensor]) -> Tensor:
    """4. The loss of rows (tokens [L + 1], supervised [L + 1], z [L], p [L]): one denominator for both [eq. 5]."""
    total = 0
    for tokens, supervised, z, p in rows:
        noisy, clean = logits_of(torch.cat([torch.where(z, MASK, tokens[:-1]), tokens[:-1]]), weights).chunk(2)
        ar = (cross_entropy(clean, tokens[1:], reduction="none") * supervised[1:]).sum()  # i predicts token i + 1
        diffusion = (cross_entropy(noisy, tokens[:-1], reduction="none") * z / p).sum()  # masked i predicts token i
        total += ar + ALPHA * diffusion
    return total / sum(supervised[1:].sum() for _, supervised, _, _ in rows)


if __name__ == "__main__":
    torch.manual_seed(1)
    attention = {"self_attention.linear_qkv": ((H + 2 * G) * D, E), "self_attention.linear_proj": (E, H * D)}
    mlp = {"mlp.linear_fc1": (2 * F, E), "mlp.linear_fc2": (E, F), "input_layernorm": (E,), "pre_mlp_layernorm": (E,)}
    shapes = {f"decoder.layers.{n}.{name}": shape for n in range(LAYERS) for name, shape in (attention | mlp).items()}
    shapes |= {"embedding.word_embeddings": (V, E), "decoder.final_layernorm": (E,), "output_layer": (V, E)}
    weights = {f"{name}.weight": (0.1 * torch.randn(shape)).requires_grad_() for name, shape in shapes.items()}
    text, supervised = torch.tensor(list(__doc__.encode()[:65])), torch.ones(65, dtype=torch.bool)  # bytes as tokens
    print(f"loss {one_step([(text, supervised, *draw_noise(supervised))], weights).item():.4f} nats a token")
