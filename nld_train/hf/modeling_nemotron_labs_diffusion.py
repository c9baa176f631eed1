"""The tri-mode model as Hugging Face loads it: one set of weights that decodes left to right, by denoising blocks, and
by self-speculation. This file travels with every export, with those that it imports.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from .blocks_nemotron_labs_diffusion import DenoisingPlan, check_judged_greedily
from .cache_nemotron_labs_diffusion import CACHE_FIELD, KVCache
from .configuration_nemotron_labs_diffusion import (
    InputError,
    NemotronLabsDiffusionConfig,
    check_mask_token,
    require_input,
)
from .decoding_nemotron_labs_diffusion import (
    DraftPlan,
    adapters_switched,
    decode_ar,
    decode_diffusion,
    decode_linear_speculation,
    evaluation_mode,
)
from .modeling_ministral import MinistralEncoder
from .objective_nemotron_labs_diffusion import (
    causal_loss,
    denoising_loss,
    diffusion_loss,
    dual_stream,
    supervised_count,
)
from .rows_nemotron_labs_diffusion import (
    GenerationLimits,
    Generations,
    Streamer,
    TokenIds,
    check_generation_request,
    check_whole_blocks,
    end_token_ids,
    thinking_budget,
)
from .sampling_nemotron_labs_diffusion import Sampler
from .trained_sampler_nemotron_labs_diffusion import TrainedSampler, load_trained_sampler

logger = logging.get_logger(__name__)
PLAIN_ATTENTION = ("sdpa", "eager")
# Arguments of `generate` that only block diffusion knows.
BLOCK_ARGUMENTS = {
    *("prompt_ids", "threshold", "causal_context", "forwards_per_block", "revise", "max_thinking_tokens", "sampler")
}


class NemotronLabsDiffusionModel(PreTrainedModel, GenerationMixin):
    """Ministral decoder with a head of its own.

    Causal logits at position i predict token i + 1; diffusion logits at i predict token i. The decoding methods
    `ar_generate`, `linear_spec_generate` and, with a block_length, `generate` take prompts [B, P], left-padded where
    `attention_mask` says 0, and return (ids with the prompt, forwards); rows that end early are filled with the
    end-of-sequence token. They are seeded by `generator` (one, or one per row) and call `streamer(row, tokens)` with
    new tokens as they come. `eos_token_id`, one or several, None means the configuration's. A drafter's PEFT adapter
    is on while `linear_spec_generate` drafts, and off in everything else that decodes.
    Raises: InputError, a ValueError of one line, for a request that cannot be met.
    """

    config_class: type[NemotronLabsDiffusionConfig] = NemotronLabsDiffusionConfig
    encoder_class = MinistralEncoder
    base_model_prefix = "encoder"  # what trainers call that compute the loss from hidden states and the head
    supports_gradient_checkpointing = True
    # transformers' Trainer may then divide by the tokens of a whole accumulated batch.
    accepts_loss_kwargs = True
    always_causal = False  # where the caller of `forward` does not say; False: as `dlm_paradigm` says
    _no_split_modules = ["MinistralDecoderLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: NemotronLabsDiffusionConfig) -> None:
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.diffusion_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._trained_sampler: TrainedSampler | None = None  # no module: it is no weight of the model
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
        past_key_values: KVCache | Cache | None = None,
        use_cache: bool | None = None,
        use_causal_mask: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cache: KVCache | Cache | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **attention_kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, n, V] of given tokens [B, n] behind those of the cache; the last `logits_to_keep` (0: all), or
        those at the places that it lists.

        Without a causal mask every given token sees the whole cache and all given tokens: a noisy block over its
        clean past. attention_mask: [B, n] or [B, past + n], 0 for padding; or [B, 1, n, K] bool, who sees whom over
        the K places of cache and given tokens. use_causal_mask None: as `dlm_paradigm` says, or causally where there
        are labels or the model was loaded by AutoModelForCausalLM. position_ids [B, n], or cache_position [n] by name,
        are computed where they are missing. past_key_values (`cache` in newer versions of transformers) is a KVCache
        or a Cache of transformers. With use_cache the given tokens join a KVCache (a new one where none is given),
        without it stays as it is; a Cache of transformers always takes them.

        labels: [B, n], -100 where nothing counts. The loss is the causal one, each position against the next label;
        or, where config.dlm_loss_weight is a number, ar_loss_weight times the causal loss plus dlm_loss_weight times
        the diffusion loss of the same tokens with noise of our own. With use_causal_mask=False the input is taken to
        be noisy already, and its masked places alone count. num_items_in_batch divides the sums; None: the number of
        labels that count. output_attentions needs attn_implementation="eager".
        Raises: InputError, a ValueError of one line.
        """
        # Versions of transformers that no longer give it warn of a parameter of this name.
        cache_position = attention_kwargs.pop("cache_position", None)
        self._check_arguments(attention_kwargs)
        past = cache if past_key_values is None else past_key_values
        keep = self._keeps_cache(use_cache)
        if position_ids is None and attention_mask is None and cache_position is not None:
            position_ids = cache_position[None]
        wanted = {
            "output_hidden_states": bool(output_hidden_states),
            "output_attentions": bool(output_attentions),
            **attention_kwargs,
        }
        loss = None
        if labels is not None and use_causal_mask is not False and self.config.dlm_loss_weight is not None:
            ids = self._joint_input(input_ids, attention_mask, past)
            loss, encoded = self._joint_loss(ids, labels, attention_mask, num_items_in_batch, wanted)
        else:
            causal = self._attends_causally(use_causal_mask, labels)
            embedded = self.encoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            past = KVCache(len(embedded)) if keep and past is None else past
            encoded = self.encoder(None, attention_mask, position_ids, embedded, past, keep, causal, **wanted)
            if labels is not None:
                loss = self._label_loss(encoded.last_hidden_state, input_ids, labels, causal, num_items_in_batch)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        fields: dict[str, Any] = {
            "loss": loss,
            "logits": self.diffusion_head(encoded.last_hidden_state[:, kept]),
            "hidden_states": encoded.hidden_states,
            "attentions": encoded.attentions,
            CACHE_FIELD: past,
        }
        output = CausalLMOutputWithPast(**fields)
        return output.to_tuple() if return_dict is False else output

    def _check_arguments(self, attention_kwargs: dict[str, Any]) -> None:
        """Raises: InputError for arguments that neither `forward` nor the attention function would read."""
        require_input(
            not attention_kwargs or self.config._attn_implementation not in PLAIN_ATTENTION,
            f"forward({', '.join(sorted(attention_kwargs))})",
            "arguments of forward, or of an attention function registered with transformers",
            "correct the name",
        )

    def _joint_input(self, ids: Tensor | None, attention_mask: Tensor | None, past: Any) -> Tensor:
        """The ids themselves. Raises: InputError for what the joint loss cannot lay out as [noisy | clean]."""
        if ids is None or past is not None or (attention_mask is not None and attention_mask.dim() != 2):
            raise InputError(
                "the joint loss with inputs_embeds, a cache, or a mask of who sees whom",
                "input_ids, and a mask of what is padding",
                "leave them out, or set config.dlm_loss_weight=None",
            )
        return ids

    def _keeps_cache(self, asked: bool | None) -> bool:
        keep = self.config.use_cache if asked is None else asked
        checkpointing = any(layer.gradient_checkpointing for layer in self.encoder.layers)
        if keep and checkpointing and self.training and torch.is_grad_enabled():
            logger.warning_once("use_cache=True does not go with gradient checkpointing: no cache is kept.")
            return False
        return keep

    def _label_loss(
        self, hidden: Tensor, ids: Tensor | None, labels: Tensor, causal: bool, count: Tensor | int | None
    ) -> Tensor:
        """The causal loss, or that of a noisy input, of hidden states [B, n, E] with labels [B, n]."""
        logits = self.diffusion_head(hidden)
        if causal:
            return causal_loss(logits, labels, count)
        return denoising_loss(logits, ids, labels, self.config.mask_token_id)

    def _attends_causally(self, asked: bool | None, labels: Tensor | None) -> bool:
        if asked is not None:
            return asked
        return self.always_causal or labels is not None or self.config.dlm_paradigm == "autoregressive"

    def _joint_loss(
        self,
        ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None,
        count: Tensor | int | None,
        wanted: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """Both terms (arXiv 2607.05722, equation 5) of ids [B, L] from one forward of [noisy | clean].

        Returns: the loss, and what the encoder gives of the clean half.
        """
        config = self.config
        both = dual_stream(ids, labels, attention_mask, config.mask_token_id, config.block_size)
        encoded = self.encoder(both.ids, both.visible, both.position_ids, causal=True, **wanted)
        noisy, clean = encoded.last_hidden_state.chunk(2, 1)
        divisor = supervised_count(labels) if count is None else count
        diffusion = diffusion_loss(self.diffusion_head(noisy[both.weights > 0]), labels, both.weights, divisor)
        loss = config.dlm_loss_weight * diffusion
        if config.ar_loss_weight is not None:
            loss = loss + config.ar_loss_weight * causal_loss(self.diffusion_head(clean), labels, divisor)
        encoded.last_hidden_state = clean
        if encoded.hidden_states is not None:
            encoded.hidden_states = tuple(state.chunk(2, 1)[1] for state in encoded.hidden_states)
        return loss, encoded

    def prepare_inputs_for_generation(self, *given: Any, **kwargs: Any) -> dict[str, Any]:
        """transformers' own decoding goes from left to right."""
        inputs = super().prepare_inputs_for_generation(*given, **kwargs)  # type: ignore[misc]
        return inputs | {"use_causal_mask": True}

    def generate(self, *given: Any, **named: Any) -> Any:
        """With a block_length: block diffusion, as `block_diffusion_generate`, which names the arguments.

        Without: transformers' own `generate`, left to right, with all that it offers (stopping criteria, sampling,
        beams, streamers); it returns what transformers returns. A drafter's adapter is off.
        Raises: InputError where an argument of block diffusion stands without a block_length.
        """
        if "block_length" in named or (len(given) > 2 and isinstance(given[2], int)):
            return self.block_diffusion_generate(*given, **named)
        alone = sorted(BLOCK_ARGUMENTS & named.keys())
        require_input(
            not alone,
            f"generate({', '.join(alone)}) without block_length",
            "both, for block diffusion; or input_ids and max_new_tokens, left to right",
            f"add block_length={self.config.block_size}, or leave {'it' if len(alone) == 1 else 'them'} out",
        )
        with adapters_switched(self, on=False):
            return super().generate(*given, **named)  # type: ignore[misc]

    def ar_generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        eos_token_id: TokenIds = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        attention_mask: Tensor | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
        **images: Tensor,
    ) -> tuple[Tensor, int]:
        """Left to right, behind prompts [B, P]. The forwards equal the generated tokens of the longest row."""
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer, images)
        with evaluation_mode(self):
            decode_ar(self, rows, Sampler(temperature, top_p, generator, len(prompt_ids)))
        return self._finished(prompt_ids, rows), rows.forwards.total()

    def block_diffusion_generate(
        self,
        prompt_ids: Tensor,
        max_new_tokens: int,
        block_length: int,
        threshold: float | None = None,
        causal_context: bool = True,
        temperature: float = 0.0,
        eos_token_id: TokenIds = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        attention_mask: Tensor | None = None,
        forwards_per_block: int | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
        revise: int = 0,
        sampler: bool = False,
        **images: Tensor,
    ) -> tuple[Tensor, int]:
        """Block diffusion. Each step commits the most confident token and those at `threshold` or above; and with
        forwards_per_block an even share of the masks left at least, so that a block takes no more of them. `revise`
        rounds at most mask the least certain quarter of a finished block again. Counts denoising forwards and one
        causal forward per finished block that another one follows; not the prefill. sampler: the confidence of a token
        is what the trained sampler in sampler/, beside the model's weights, says of it.
        """
        check_whole_blocks(max_new_tokens, block_length)
        if sampler:
            check_judged_greedily(temperature)
        judge = self.trained_sampler() if sampler else None
        mask = self.config.mask_token_id
        plan = DenoisingPlan(block_length, mask, threshold, forwards_per_block, revise, causal_context, judge)
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer, images)
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
        eos_token_id: TokenIds = None,
        max_thinking_tokens: int | None = None,
        end_think_token_id: int | None = None,
        threshold: float = 0.0,
        attention_mask: Tensor | None = None,
        top_p: float = 1.0,
        generator: Generator | Sequence[Generator] | None = None,
        streamer: Streamer | None = None,
        **images: Tensor,
    ) -> tuple[Tensor, int]:
        """Linear self-speculation: the tokens of `ar_generate`, or at a temperature their exact distribution. A draft
        stops where no token has `threshold`. Counts the prefill, and a draft and a verification per round.
        """
        mask = self.config.mask_token_id if mask_token_id is None else mask_token_id
        check_mask_token(mask, self.config.vocab_size)
        limits = self._limits(max_new_tokens, eos_token_id, max_thinking_tokens, end_think_token_id)
        rows = self._rows(prompt_ids, attention_mask, limits, streamer, images)
        sampler = Sampler(temperature, top_p, generator, len(prompt_ids))
        with evaluation_mode(self):
            decode_linear_speculation(self, rows, sampler, DraftPlan(block_length, mask, threshold))
        return self._finished(prompt_ids, rows), rows.forwards.total()

    def trained_sampler(self) -> TrainedSampler:
        """The trained sampler beside the weights, read once. Raises: InputError where there is none."""
        if self._trained_sampler is None:
            if not self.name_or_path:
                got, do = "a model that was read from no folder", "load the folder that holds sampler/"
                raise InputError(got, "a model of `from_pretrained`", do)
            vocab_size, revision = self.config.vocab_size, self.config._commit_hash
            self._trained_sampler = load_trained_sampler(self.name_or_path, vocab_size, revision)
        return self._trained_sampler

    def _limits(self, new: int, eos: TokenIds, thinking: int | None, end_think: int | None) -> GenerationLimits:
        ends = end_token_ids(self.config.eos_token_id if eos is None else eos)
        return GenerationLimits(new, ends, thinking_budget(thinking, end_think))

    def prefill_images(self, prompts: Sequence[Sequence[int]], images: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the prefill is given beside the [B, P] tokens of `prompts`: here nothing. Raises: InputError."""
        got, do = f"arguments {', '.join(sorted(images))}", "correct the names; images need a model with a vision tower"
        require_input(not images, got, "those of the method", do)
        return {}

    def _rows(
        self,
        prompt_ids: Tensor,
        mask: Tensor | None,
        limits: GenerationLimits,
        streamer: Streamer | None,
        images: Mapping[str, Tensor],
    ) -> Generations:
        prompts = [
            ids.tolist() if mask is None else ids[mask[row].bool()].tolist() for row, ids in enumerate(prompt_ids)
        ]
        check_generation_request(self.config, prompts, limits)
        return Generations(prompts, limits, streamer, self.prefill_images(prompts, images))

    def _finished(self, prompt_ids: Tensor, rows: Generations) -> Tensor:
        """[B, P + longest], shorter rows filled with the end-of-sequence token."""
        new = [torch.tensor(row.tokens, device=prompt_ids.device) for row in rows.rows]
        ends = rows.limits.eos_token_ids  # rows of different lengths exist only where one of them ended one
        filled = pad_sequence(new, batch_first=True, padding_value=ends[0] if ends else 0)
        return torch.cat([prompt_ids, filled], 1)


class NemotronLabsDiffusionForCausalLM(NemotronLabsDiffusionModel):
    """The same model for programs that know causal language models alone: `forward` attends causally where its caller
    does not say, so that scores and gradients are those of left-to-right text. AutoModelForCausalLM loads it.
    """

    always_causal = True
