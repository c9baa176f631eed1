"""From the run's own configuration to Megatron-Bridge's."""

import logging
from pathlib import Path

import torch
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    DistributedInitConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig, get_mixed_precision_config

from nld_train.config import RunConfig
from nld_train.data.trajectory_rows import run_collection
from nld_train.model.drafter_adapter import drafter_lora
from nld_train.model.provider import model_provider
from nld_train.model.provider_config import DualStreamConfig
from nld_train.model.sampler_provider import sampler_provider
from nld_train.objectives.choose import objective_of
from nld_train.recipe import run_to_json
from nld_train.run_folder.checkpoints import init_checkpoint, newest_complete_step
from nld_train.run_folder.paths import TENSORBOARD, checkpoints_folder, data_index_folder
from nld_train.train.callbacks.carried_optimizer import carries_optimizer
from nld_train.train.dataset import RunRowsProvider
from nld_train.trajectories.stored_parts import read_pca

NEVER = 1 << 60  # steps
FP8_CONFIGS = {  # Megatron-Bridge's own; tensorwise keeps the first and the last layer in bf16
    "tensorwise": "bf16_with_fp8_current_scaling_mixed",
    "blockwise": "bf16_with_fp8_subchannel_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
}


def bridge_config(run: RunConfig) -> ConfigContainer:
    """Everything Megatron-Bridge needs to train this run."""
    output, lora = Path(run.output), objective_of(run).adapter
    return ConfigContainer(
        model=_model(run),
        train=TrainingConfig(
            train_iters=run.train.iterations,
            global_batch_size=run.train.global_batch,
            micro_batch_size=run.train.micro_batch,
        ),
        validation=ValidationConfig(eval_interval=run.train.eval_interval, eval_iters=run.train.eval_batches),
        optimizer=optimizer_config(run),
        scheduler=_schedule(run),
        ddp=data_parallel_config(run),
        dataset=_rows(run),
        # Tokens arrive as ids: Megatron needs the size of the vocabulary and no tokenizer.
        tokenizer=TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=run.model.vocab_size - 1),
        logger=_logger(run, output),
        checkpoint=_checkpoint(run, output),
        rng=RNGConfig(seed=run.train.seed),
        dist=_process_groups(run),
        mixed_precision=mixed_precision(run),
        peft=None if lora is None else drafter_lora(lora, run.train.seed),
    )


def _model(run: RunConfig) -> DualStreamConfig:
    """What is trained: the model, or the sampler's network for the embeddings of its trajectories."""
    if run.sampler is None:
        return model_provider(run)
    return sampler_provider(run, read_pca(run_collection(run).folder).coordinates.shape[1])


def mixed_precision(run: RunConfig) -> MixedPrecisionConfig | None:
    """bf16 with float32 gradients, and with FP8 in the layers' linear maps where the run asks for it; None: float32."""
    if run.train.precision == "fp32":
        return None
    precision = get_mixed_precision_config("bf16_mixed" if run.train.fp8 == "none" else FP8_CONFIGS[run.train.fp8])
    # Weights stay in bf16: checkpoints hold them, and every reader of ours takes them.
    precision.fp8_param_gather = precision.reuse_grad_buf_for_mxfp8_param_ag = False
    return precision


def optimizer_config(run: RunConfig) -> OptimizerConfig:
    """AdamW with the run's settings; the schedule changes its learning rate."""
    settings = run.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=run.train.precision == "bf16",
        use_distributed_optimizer=run.parallel.distributed_optimizer,
    )


def _schedule(run: RunConfig) -> SchedulerConfig:
    """The learning rate over the iterations: warm-up, stable, decay (WSD)."""
    return SchedulerConfig(
        lr_decay_style="WSD",
        lr_wsd_decay_style="minus_sqrt",
        lr_warmup_iters=run.optimizer.warmup_iterations,
        lr_decay_iters=run.train.iterations,
        lr_wsd_decay_iters=run.optimizer.decay_iterations,
        start_weight_decay=run.optimizer.weight_decay,
        end_weight_decay=run.optimizer.weight_decay,
        weight_decay_incr_style="constant",
        # A resumed run follows its recipe, also where iterations were added since the checkpoint.
        override_opt_param_scheduler=True,
    )


def data_parallel_config(run: RunConfig) -> DistributedDataParallelConfig:
    """How gradients are summed over the data-parallel ranks."""
    overlap = torch.cuda.is_available() and objective_of(run).overlaps_communication
    return DistributedDataParallelConfig(
        use_distributed_optimizer=run.parallel.distributed_optimizer,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and run.parallel.distributed_optimizer,
        # Gradients are summed in float32 and divided once, by the global count.
        grad_reduce_in_fp32=True,
        average_in_collective=False,
        # train/callbacks/health.py looks at the global norm instead. Megatron's check would wait for the device at
        # every bucket, and stop the rank at fault alone, without saying where.
        check_for_nan_in_grad=False,
    )


def _rows(run: RunConfig) -> RunRowsProvider:
    """The run's rows, and how the loader fetches them."""
    return RunRowsProvider(
        run_json=run_to_json(run),
        seq_length=run.data.sequence_length,
        index_folder=str(data_index_folder(run.output)),
        random_seed=run.data.shuffle_seed,
        dataloader_type="single",
        num_workers=run.data.workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=run.data.workers > 0,
    )


def _logger(run: RunConfig, output: Path) -> LoggerConfig:
    """TensorBoard and Weights & Biases."""
    return LoggerConfig(
        # train/callbacks/progress.py reports in place of Megatron-Bridge's own line.
        log_interval=NEVER,
        tensorboard_dir=str(output / TENSORBOARD),
        tensorboard_log_interval=run.log.interval,
        wandb_project=None if run.log.wandb == "disabled" else run.log.wandb_project,
        wandb_exp_name=run.name,
        wandb_save_dir=str(output),
        logging_level=logging.INFO,
    )


def _checkpoint(run: RunConfig, output: Path) -> CheckpointConfig:
    """Where checkpoints are written and read, and what the first one starts from."""
    saved = str(checkpoints_folder(output))
    init = objective_of(run).init_to_read(resumes=newest_complete_step(output) is not None)
    first = None if init is None else str(init_checkpoint(init, run.init_step))
    carried = carries_optimizer(run)
    assert first is not None or not carried, f"{run.name} has init_optimizer without init: the start checks refuse it"
    return CheckpointConfig(
        save=saved,
        # What is under `load` is read as a resume, with its optimizer. Dropout's generator is the run's own.
        load=first if carried else saved,
        load_rng=not carried,
        save_interval=run.checkpoint.interval,
        most_recent_k=run.checkpoint.keep,
        # It is read only where `load` holds nothing yet, and gives weights alone, at step 0.
        pretrained_checkpoint=None if carried else first,
        async_save=run.checkpoint.asynchronous,
        ckpt_format="torch_dist",
        # Adam's moments are saved by parameter, and not as the ranks happen to share them out, so that a run may
        # continue under any other layout. Saving gathers 12 bytes for each parameter of a rank's shard of the model in
        # host memory.
        dist_ckpt_optim_fully_reshardable=True,
        save_tokenizer_assets=False,
    )


def _process_groups(run: RunConfig) -> DistributedInitConfig:
    """NCCL on GPUs, gloo on CPUs."""
    on_gpu = torch.cuda.is_available()
    return DistributedInitConfig(
        distributed_backend="nccl" if on_gpu else "gloo",
        use_gloo_process_groups=True,
        distributed_timeout_minutes=run.parallel.timeout_minutes,
    )
