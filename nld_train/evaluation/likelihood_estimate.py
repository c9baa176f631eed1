"""How likely a model finds a window: left to right exactly, and by denoising as a bound that is estimated.

Letters: K draws of noise, n tokens of a window behind its first, V vocabulary size.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nld_train.config import NoiseLaw
from nld_train.errors import require
from nld_train.evaluation.likelihood_windows import LikelihoodWindow
from nld_train.hf.objective_nemotron_labs_diffusion import dual_stream_visibility
from nld_train.noise.law import NoiseSample, draw_mask


@dataclass(frozen=True)
class NoiseSettings:
    """The noise of the diffusion bound."""

    law: NoiseLaw = "stratified"
    draws: int = 8  # K, of every window
    eps: float = 1e-3  # p = (1 - eps) * t + eps
    seed: int = 1234
    batch: int = 8  # draws a forward


@dataclass(frozen=True)
class WindowNoise:
    """The draws of one window."""

    level: Tensor  # [K] float64: p, with which each draw masks
    masked: Tensor  # [K, n] bool


def causal_nats(model: Any, window: LikelihoodWindow) -> float:
    """-ln p of the tokens that count, added up: each given all tokens of the window before it."""
    tokens, counted = torch.from_numpy(window.tokens), torch.from_numpy(window.counted)
    hidden = model.encoder(tokens[None, :-1].to(model.device), causal=True).last_hidden_state[0]
    return float(token_nats(model.diffusion_head(hidden[counted]), tokens[1:][counted]).sum())


def denoising_nats(model: Any, tokens: Tensor, masked: Tensor) -> Tensor:
    """-ln p of the masked tokens of tokens [n + 1] for masks [K, n] of tokens[1:]: [K, n] float64, 0 where not masked.

    One forward of [noisy | clean], n tokens each: the noisy half are tokens 1 .. n, the clean half 0 .. n - 1, as the
    causal model is given them. Blocks are counted from token 1 on, so that the first of them, too, has context. The
    mask itself is never predicted, as in decoding.
    """
    draws, length = masked.shape
    mask_token_id, block_size = model.config.mask_token_id, model.config.block_size
    place = torch.arange(length + 1)
    # Counted from -1, token 0 is a block of its own.
    whole = dual_stream_visibility(place[None] - 1, torch.ones(1, length + 1, dtype=torch.bool), block_size)
    given = torch.cat([place[1:], length + 1 + place[:-1]])
    visible = whole[:, :, given][..., given].expand(draws, -1, -1, -1)
    clean = tokens.expand(draws, -1)
    ids = torch.cat([clean[:, 1:].masked_fill(masked, mask_token_id), clean[:, :-1]], 1)
    positions = torch.cat([place[1:], place[:-1]]).expand(draws, -1)
    on = model.device
    hidden = model.encoder(ids.to(on), visible.to(on), positions.to(on), causal=True).last_hidden_state[:, :length]
    logits = model.diffusion_head(hidden[masked.to(on)])
    logits[..., mask_token_id] = -torch.inf
    nats = token_nats(logits, clean[:, 1:][masked])
    return torch.zeros(draws, length, dtype=torch.float64).masked_scatter(masked, nats)


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p of targets [R] under logits [R, V]: [R] float64 on the host, computed in float32 or wider."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(wide, targets.to(logits.device), reduction="none").double().cpu()


def draw_window_noise(number: int, counted: Tensor, noise: NoiseSettings) -> WindowNoise:
    """K draws for window `number`: a pure function of (seed, number, draw). Tokens that do not count stay as they are.

    uniform: every draw has a t ~ U(0, 1) of its own. stratified: the K draws of a window share [0, 1) out.
    complementary: draws 2k and 2k + 1 are antithetic.
    """
    blocks = torch.zeros(len(counted), dtype=torch.int64)  # these laws have one t a draw
    samples = (
        NoiseSample(noise.seed, f"likelihood/{number}", draw, noise.draws, blocks, level_rows=1)
        for draw in range(noise.draws)
    )
    drawn = [draw_mask(noise.law, noise.eps, sample) for sample in samples]
    level = torch.stack([p[0] for p, _ in drawn]).double()
    return WindowNoise(level, torch.stack([masked for _, masked in drawn]) & counted)


def bound_nats(model: Any, window: LikelihoodWindow, drawn: WindowNoise, batch: int) -> list[float]:
    """SUM_i z_i / p * -ln p(x_i) of every draw, nats [K]: each an unbiased estimate of the negative ELBO.

    That is a bound from above on the window's -ln p. batch: draws a forward.
    """
    tokens = torch.from_numpy(window.tokens)
    nats = torch.cat([denoising_nats(model, tokens, masked) for masked in drawn.masked.split(batch)])
    return (nats.sum(1) / drawn.level).tolist()


def window_record(
    model: Any, window: LikelihoodWindow, number: int, noise: NoiseSettings, where: str
) -> dict[str, Any]:
    """What is recorded of window `number`; JSON values. where: what it is called in an error.

    Raises: UserError for a text that holds the mask, and for numbers that are not finite.
    """
    mask = model.config.mask_token_id
    # The mask is never predicted, so such a text would have no likelihood.
    held = mask in window.tokens[1:][window.counted]
    require(
        not held, f"{where} holds the mask token {mask}", "text without it", "prepare it with this model's tokenizer"
    )
    drawn = draw_window_noise(number, torch.from_numpy(window.counted), noise)
    causal, bounds = causal_nats(model, window), bound_nats(model, window, drawn, noise.batch)
    finite = all(map(math.isfinite, (causal, *bounds)))
    require(finite, f"the model's likelihood of {where} is no number", "finite weights", "look at its training")
    return {
        "tokens": int(window.counted.sum()),
        "bytes": window.text_bytes,
        "ar_nats": causal,
        "bound_nats": bounds,
        "levels": drawn.level.tolist(),
    }


def check_noise_settings(noise: NoiseSettings) -> None:
    """Raises: UserError where the draws of a window do not fill the law's groups."""
    alone = noise.law == "uniform"
    fine = noise.draws >= 2 and (alone or noise.draws % 2 == 0)
    allowed = "2 or more" if alone else "an even number"
    require(fine, f"--draws {noise.draws} with --noise {noise.law}", allowed, "the error is seen from their spread")
    require(0 < noise.eps < 1, f"--eps {noise.eps}", "above 0 and below 1", "leave it out for 1e-3")
