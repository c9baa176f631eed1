"""The tri-mode model as Hugging Face loads it: one set of weights that decodes left to right, by denoising blocks, and
by self-speculation. This file travels with every export, with those that it imports.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_nemotron_labs_diffusion import NemotronLabsDiffusionConfig, check_mask_token
from .decoding_nemotron_labs_diffusion import (
    DenoisingPlan,
    decode_ar,
    decode_diffusion,
    decode_linear_speculation,
    evaluation_mode,
)
from .modeling_ministral import KVCache, MinistralEncoder
from .rows_nemotron_labs_diffusion import (
    GenerationLimits,
    Generations,
    Streamer,
    check_generation_request,
    check_whole_blocks,
    thinking_budget,
)
from .sampling_nemotron_labs_diffusion import Sampler


class NemotronLabsDiffusionModel(PreTrainedModel):
    """Ministral decoder with a head of its own.

    Causal logits at position i predict token i + 1; diffusion logits at i predict token i. The three decoding methods
    take prompts [B, P], left-padded where `attention_mask` says 0, and return (ids with the prompt, forwards); rows
    that end early are filled with the end-of-sequence token. They are seeded by `generator` (one, or one per row) and
    call `streamer(row, tokens)` with new tokens as they come. `eos_token_id` None means the configuration's.
    Raises: InputError, a ValueError of one line, for a request that cannot be met.
    """

    config_class = NemotronLabsDiffusionConfig
    _no_split_modules = ["MinistralDecoderLayer"]
    _supports_sdpa = True

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__(config)
        self.encoder = MinistralEncoder(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding), f"an embedding is needed, not {type(value).__name__}"
        self.encoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.diffusion_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.diffusion_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        use_causal_mask: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, n, V] of given tokens [B, n] behind those of the cache; the last `logits_to_keep` (0: all).

        Without a causal mask every given token sees the whole cache and all given tokens: a noisy block over its
        clean past. attention_mask: [B, n] or [B, past + n], 0 for padding; or [B, 1, n, K] bool, who sees whom over
        the K places of cache and given tokens. use_causal_mask None: as `dlm_paradigm` says. With use_cache the given
        tokens join the cache (a new one where none is given); without, it stays as it is.
        labels: [B, n], -100 where nothing counts; mean cross-entropy with the next label (causal) or its own.
        """
        causal = self.config.dlm_paradigm == "autoregressive" if use_causal_mask is None else use_causal_mask
        keep = self.config.use_cache if use_cache is None else use_cache
        hidden = self.encoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = KVCache(len(hidden)) if keep and past_key_values is None else past_key_values
        hidden = self.encoder(hidden, attention_mask, position_ids, cache, causal, keep)
        logits = self.diffusion_head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else label_loss(logits, labels, causal)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)  # type: ignore[arg-type]
        return output if return_dict else output.to_tuple()

    def ar_generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        eos_token_id: int | None = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        attention_mask: Tensor | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
    ) -> tuple[Tensor, int]:
        """Left to right. The forwards equal the generated tokens of the longest row."""
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer)
        with evaluation_mode(self):
            decode_ar(self, rows, Sampler(temperature, top_p, generator, len(prompt_ids)))
        return self._finished(prompt_ids, rows), rows.forwards.total()

    def generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int,
        block_length: int,
        threshold: float | None = None,
        causal_context: bool = True,
        temperature: float = 0.0,
        eos_token_id: int | None = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        attention_mask: Tensor | None = None,
        steps_per_block: int | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
    ) -> tuple[Tensor, int]:
        """Block diffusion. Each step commits the most confident token and those at `threshold` or above; without a
        threshold an even share, block_length / steps_per_block. Counts denoising forwards and one causal forward per
        finished block that another one follows; not the prefill.
        """
        check_whole_blocks(max_new_tokens, block_length)
        plan = DenoisingPlan(block_length, self.config.mask_token_id, threshold, steps_per_block, causal_context)
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer)
        with evaluation_mode(self):
            decode_diffusion(self, rows, Sampler(temperature, top_p, generator, len(prompt_ids)), plan)
        return self._finished(prompt_ids, rows), rows.forwards["draft"] + rows.forwards["verify"]

    def linear_spec_generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int = 128,
        block_length: int = 32,
        temperature: float = 0.0,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        threshold: float = 0.0,
        attention_mask: Tensor | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
    ) -> tuple[Tensor, int]:
        """Linear self-speculation: the tokens of `ar_generate`, or at a temperature their exact distribution. A draft
        stops where no token has `threshold`. Counts the prefill, and a draft and a verification per round.
        """
        mask = self.config.mask_token_id if mask_token_id is None else mask_token_id
        check_mask_token(mask, self.config.vocab_size)
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer)
        sampler = Sampler(temperature, top_p, generator, len(prompt_ids))
        with evaluation_mode(self):
            decode_linear_speculation(self, rows, sampler, block_length, mask, threshold)
        return self._finished(prompt_ids, rows), rows.forwards.total()

    def _limits(self, new: int, eos: int | None, thinking: int | None, end_think: int | None) -> GenerationLimits:
        return GenerationLimits(
            new, self.config.eos_token_id if eos is None else eos, thinking_budget(thinking, end_think)
        )

    def _rows(
        self, prompt_ids: Tensor, mask: Tensor | None, limits: GenerationLimits, streamer: Streamer | None
    ) -> Generations:
        prompts = [
            ids.tolist() if mask is None else ids[mask[row].bool()].tolist() for row, ids in enumerate(prompt_ids)
        ]
        check_generation_request(self.config, prompts, limits)
        return Generations(prompts, limits, streamer)

    def _finished(self, prompt_ids: Tensor, rows: Generations) -> Tensor:
        """[B, P + longest], shorter rows filled with the end-of-sequence token."""
        new = [torch.tensor(row.tokens, device=prompt_ids.device) for row in rows.rows]
        eos = rows.limits.eos_token_id  # rows of different lengths exist only where it ended one
        filled = pad_sequence(new, batch_first=True, padding_value=0 if eos is None else eos)
        return torch.cat([prompt_ids, filled], 1)


def label_loss(logits: Tensor, labels: Tensor, causal: bool) -> Tensor:
    """Mean cross-entropy of logits [B, n, V] with labels [B, n], the next one (causal) or its own; -100: none."""
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
