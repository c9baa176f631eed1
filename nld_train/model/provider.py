"""Builds the model for Megatron-Bridge from a ModelConfig."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from nld_train.config import RunConfig
from nld_train.model.core_attention import DualStreamAttention
from nld_train.model.gpt import DualStreamGPTModel
from nld_train.model.norm import FinalRMSNorm, LocalRMSNorm
from nld_train.model.provider_config import DualStreamConfig
from nld_train.model.vision_gpt import DualStreamVisionModel


def decoder_block_spec(config: DualStreamConfig, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Transformer Engine layers on GPUs and Megatron's local layers on CPUs, with our attention in every layer."""
    on_gpu = torch.cuda.is_available()
    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=on_gpu, normalization="RMSNorm", vp_stage=vp_stage
    )
    for layer in block.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = DualStreamAttention
        if not on_gpu:
            layer.submodules.input_layernorm = LocalRMSNorm
            layer.submodules.pre_mlp_layernorm = LocalRMSNorm
    if not on_gpu:
        block.layer_norm = FinalRMSNorm
    return block


@dataclass(kw_only=True)
class DualStreamProvider(DualStreamConfig):
    """Builds one pipeline stage of the model when Megatron-Bridge asks for it."""

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> GPTModel:
        """One stage of the model. By default the first one has the embedding, and the last one the head."""
        stages, chunks = self._pg_collection.pp, self.virtual_pipeline_model_parallel_size
        if pre_process is None:
            pre_process = is_vp_first_stage(vp_stage, chunks) and is_pp_first_stage(stages)
        if post_process is None:
            post_process = is_vp_last_stage(vp_stage, chunks) and is_pp_last_stage(stages)
        kind = DualStreamGPTModel if self.vision is None else DualStreamVisionModel
        return kind(
            self,
            transformer_layer_spec=decoder_block_spec(self, vp_stage),
            vocab_size=self.vocab_size,
            max_sequence_length=self.seq_length,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=False,
            position_embedding_type="yarn",
            rotary_base=self.rotary_base,
            pg_collection=self._pg_collection,
            vp_stage=vp_stage,
        )


def rows_share_positions(run: RunConfig) -> bool:
    """Whether the rows of a micro-batch have the same positions, as the fused kernel of the rotary embedding wants."""
    return not run.diffusion.document_mask or run.train.micro_batch == 1


def model_provider(run: RunConfig) -> DualStreamProvider:
    """The provider of a run's model, sharded as the run's layout says."""
    model, rope, parallel = run.model, run.model.rope, run.parallel
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if run.train.precision == "bf16" else torch.float32
    return DualStreamProvider(
        row_length=run.data.sequence_length,
        block_size=run.diffusion.block_size,
        dual=run.diffusion.dual,
        text_length=run.data.text_length,
        attention_name=run.train.attention,
        query_scale_beta=rope.query_scale_beta,
        vision=run.vision,
        # Megatron's pipeline sends tensors of seq_length positions: the model's input, not the row.
        seq_length=run.positions,
        num_layers=model.layers,
        hidden_size=model.hidden,
        ffn_hidden_size=model.ffn,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        kv_channels=model.head_dim,
        vocab_size=model.vocab_size,
        make_vocab_size_divisible_by=1,
        share_embeddings_and_output_weights=False,
        init_method_std=model.init_std,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        position_embedding_type="yarn",
        rotary_base=rope.theta,
        yarn_rotary_scaling_factor=rope.factor,
        yarn_original_max_position_embeddings=rope.original_max_position,
        yarn_beta_fast=rope.beta_fast,
        yarn_beta_slow=rope.beta_slow,
        yarn_mscale=rope.mscale,
        yarn_mscale_all_dim=rope.mscale_all_dim,
        yarn_correction_range_round_to_int=True,
        calculate_per_token_loss=True,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        # Several chunks per stage: one batched exchange would mix up activations and gradients where the stage before
        # and the stage after are the same rank.
        overlap_p2p_comm=parallel.virtual_pipeline > 1,
        batch_p2p_comm=parallel.virtual_pipeline == 1,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        deterministic_mode=run.train.deterministic,
        recompute_granularity=None if parallel.recompute == "none" else parallel.recompute,
        recompute_method="uniform" if parallel.recompute == "full" else None,
        recompute_num_layers=1 if parallel.recompute == "full" else None,
        bf16=run.train.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Fused kernels exist on GPUs only. Norms are fused into the maps behind them by Transformer Engine's layers.
        apply_rope_fusion=on_gpu and rows_share_positions(run),
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        cross_entropy_loss_fusion=False,
        # Whatever Transformer Engine can do, Megatron refuses to build its LM head with this but without Apex's kernel.
        gradient_accumulation_fusion=on_gpu and find_spec("fused_weight_gradient_mlp_cuda") is not None,
    )
