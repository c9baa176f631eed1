"""What `nld train RECIPE --dry-run` prints: the run in numbers, computed on any machine without loading a model."""

from nld_train.config import RunConfig
from nld_train.fp8_recipes import SPEED
from nld_train.objectives.choose import objective_of
from nld_train.plan import flops, memory, parameters, row_counts, sampler_plan, scale, vision_plan

Line = tuple[str, str]  # a label, and the text behind it

GB = 1e9
LABEL_WIDTH = 18


def dry_run_text(run: RunConfig) -> str:
    """The plan of a run as plain text, in aligned lines."""
    lines = [*size_lines(run), *data_lines(run), *layout_lines(run), *compute_lines(run)]
    if run.sampler is not None:
        lines = [*sampler_lines(run), *layout_lines(run)]
    return "\n".join(
        [
            aligned_lines([("run", run.name), *lines]),
            "",
            memory_report(run),
            "",
            aligned_lines(disk_lines(run)),
            *scale_report(run),
        ]
    )


def aligned_lines(lines: list[Line]) -> str:
    """Lines of text whose second column is aligned."""
    return "\n".join(f"{label:<{LABEL_WIDTH}}{text}" for label, text in lines)


def size_lines(run: RunConfig) -> list[Line]:
    """How many parameters there are, where they start from, and which of them are trained."""
    count = parameters.model_parameters(run.model)
    parts = (
        f"embedding {count.embedding:,}; {count.layers} layers of {count.layer:,}; "
        f"final norm {count.final_norm:,}; head {count.head:,}"
    )
    vision = vision_plan.vision_parameters(run)
    lines = [("parameters", f"{count.total + vision.total:,}"), ("", parts), *tower_lines(run)]
    lines.append(("starts from", run.init or "random weights"))
    lora = objective_of(run).adapter
    if lora is not None:
        trained = f"{memory.trained_parameters(run):,}: LoRA of rank {lora.rank} on o_proj; the rest is frozen"
        lines.append(("trained", trained))
    return lines


def tower_lines(run: RunConfig) -> list[Line]:
    """What stands in front of the language model of a run with images."""
    if run.vision is None:
        return []
    count, trained = vision_plan.vision_parameters(run), "trained" if run.vision.train_tower else "not trained"
    where = "on the first pipeline stage, whole on each of its GPUs"
    return [("", f"vision tower {count.tower:,}, {trained}; projector {count.projector:,}; {where}")]


def image_lines(run: RunConfig) -> list[Line]:
    """The images that a row is planned with, and what it spares to leave them out of the noisy half."""
    if run.vision is None:
        return []
    cells, patches = vision_plan.image_cells(run), vision_plan.image_patches(run)
    room = f"{cells:,} cells = L - L_text, {patches:,} patches of {run.vision.patch_size} pixels: all there is room for"
    lines = [("images of a row", room)]
    return [*lines, ("asymmetric rows", asymmetric_text(run))] if run.diffusion.dual else lines


def asymmetric_text(run: RunConfig) -> str:
    """Positions, FLOPs and memory of the language model's layers, against those of rows with images in both halves."""
    length, text, positions = run.data.sequence_length, run.data.noisy_length, row_counts.row_positions(run)
    row, need = flops.row_flops(run), memory.worst_stage(run)
    more = 2 * length / positions
    pairs = row_counts.symmetric_pairs(run) / row_counts.run_visible_pairs(run)
    work = 1 - (row.layers + row.attention) / (row.layers * more + row.attention * pairs)
    spared = (more - 1) * (need.activations + need.layer_backward)
    return (
        f"L_text + L = {text:,} + {length:,} = {positions:,} positions, against 2L = {2 * length:,}: in the layers of "
        f"the language model {work:.1%} fewer FLOPs and {1 - 1 / more:.1%} ({gb_number(spared)} GB) less memory"
    )


def sampler_lines(run: RunConfig) -> list[Line]:
    """The sampler's network, its rows, and what it costs beside a denoising forward of the model."""
    asked = sampler_plan.sampler_section(run)
    kind = "a Transformer over the block" if asked.attention else "an MLP that judges every position alone"
    shape = f"{asked.layers} layers, width {asked.width}, FFN {asked.ffn}, {asked.heads} heads"
    train, length = run.train, run.data.sequence_length
    steps = f"{sampler_plan.sampler_blocks(run):,} steps at most in a micro-batch"
    own = sampler_plan.judging_flops(asked, sampler_plan.sampler_features(run), length)
    model = sampler_plan.denoising_flops(run.model, length, sampler_plan.PAST)
    return [
        ("parameters", f"{memory.trained_parameters(run):,}: {kind}, {shape}; the model is not loaded"),
        ("features", f"{sampler_plan.sampler_features(run)} of a position"),
        ("rows", f"{train.iterations:,} iterations x {train.global_batch:,} trajectories of at most {length} tokens"),
        ("", steps),
        (
            "when decoding",
            f"{own:.3g} FLOPs beside a forward's {model:.3g}, for a block of {length}: {own / model:.2%}",
        ),
    ]


def data_lines(run: RunConfig) -> list[Line]:
    """Tokens of the run, what the model is given of a row, and LM-head rows."""
    train, length, objective = run.train, run.data.sequence_length, objective_of(run)
    factors = f"{train.iterations:,} iterations x {train.global_batch:,} rows x {length:,}"
    head = f"{objective.expected_head_rows():,.0f} per row expected, {objective.most_head_rows():,} at most"
    return [
        ("tokens", f"{row_counts.run_tokens(run):,} = {factors}"),
        ("model input", model_input(run)),
        *image_lines(run),
        ("LM-head rows", head),
    ]


def model_input(run: RunConfig) -> str:
    """The positions of a row, its halves, and how many pairs of positions see each other."""
    kind = f"[noisy | clean] in blocks of {run.diffusion.block_size}" if run.diffusion.dual else "the clean row alone"
    pairs = f"{row_counts.run_visible_pairs(run):,} visible pairs, mask density {row_counts.mask_density(run):.4f}"
    if run.vision is not None:
        pairs += " (one conversation, its images first)"
    return f"{row_counts.row_positions(run):,} positions, {kind}; {pairs}"


def layout_lines(run: RunConfig) -> list[Line]:
    """How the ranks share the model and the rows."""
    parallel = run.parallel
    ranks = (
        f"{parallel.world_size} ranks = data {parallel.data} x tensor {parallel.tensor} x pipeline {parallel.pipeline}"
    )
    return [
        ("layout", f"{ranks} x context {parallel.context}; {parallel.virtual_pipeline} chunk(s) per pipeline stage"),
        (
            "",
            f"sequence parallel {yes_or_no(parallel.sequence)}, "
            f"distributed optimizer {yes_or_no(parallel.distributed_optimizer)}",
        ),
        (
            "per step",
            f"{row_counts.micro_batches(run)} micro-batch(es) of {run.train.micro_batch} row(s) on each data rank",
        ),
    ]


def yes_or_no(flag: bool) -> str:
    """A setting that is on or off, as a word."""
    return "yes" if flag else "no"


def compute_lines(run: RunConfig) -> list[Line]:
    """FLOPs of a token and of the run, and the time they take."""
    row, length = flops.row_flops(run), run.data.sequence_length
    parts = f"layers {row.layers / length:.4g}, attention {row.attention / length:.4g}, head {row.head / length:.4g}"
    if run.vision is not None:
        parts += f", vision {row.vision / length:.4g}"
    return [
        ("FLOPs per token", f"{flops.flops_per_token(run):.4g} forward and backward ({parts})"),
        ("FLOPs of the run", f"{flops.run_flops(run):.4g}"),
        ("time", time_estimate(run)),
    ]


def time_estimate(run: RunConfig) -> str:
    """Days on H100s at the assumed utilisation, together with that assumption."""
    if run.train.precision == "fp32":
        return "not estimated for fp32"
    peak = f"{flops.H100_BF16 / 1e12:.0f} TFLOP/s"
    return (
        f"{flops.run_days(run):.3g} days on {run.parallel.world_size} H100, at {flops.MFU:.0%} of {peak} (bf16, dense)"
        f"{fp8_note(run)}{tower_note(run)}"
    )


def fp8_note(run: RunConfig) -> str:
    """What the time assumes of FP8; nothing where the run has none."""
    return "" if run.train.fp8 == "none" else f", linear maps in FP8 ({run.train.fp8}) {SPEED:g} times as fast"


def tower_note(run: RunConfig) -> str:
    """What the time assumes of the tower; nothing where each GPU has images of its own."""
    sharing = run.parallel.model_ranks
    return f"; the {sharing} GPUs of a replica wait for one tower" if run.vision is not None and sharing > 1 else ""


def memory_report(run: RunConfig) -> str:
    """The memory of one GPU, part by part, of the pipeline stage that needs most."""
    need = memory.worst_stage(run)
    total_parameters = memory.trained_parameters(run)
    if run.sampler is None:
        total_parameters, _ = vision_plan.stage_parameters(run, need.stage)
    parts = [
        ("weights", need.weights, weights_note(run, total_parameters)),
        ("gradients", need.gradients, "fp32"),
        ("optimizer", need.optimizer, f"fp32, over {memory.optimizer_shards(run.parallel)} rank(s)"),
        ("activations", need.activations, activations_note(run, need.stage)),
        *images_part(run, need),
        ("transient", need.transient, transient_note(run, need)),
        ("total", need.total, memory_verdict(need)),
    ]
    head = f"memory per GPU, GB of 1e9 bytes (pipeline stage {need.stage}, which needs most)"
    return "\n".join(
        [head, *(f"  {part:<{LABEL_WIDTH - 2}}{gb_number(size):>8}  {note}" for part, size, note in parts)]
    )


def weights_note(run: RunConfig, count: int) -> str:
    """What the weights are kept in."""
    copies = "" if run.train.fp8 == "none" else f", those of the layers also in FP8 ({run.train.fp8})"
    return f"{count:,} parameters in {run.train.precision}{copies}"


def activations_note(run: RunConfig, stage: int) -> str:
    """What the activations of a stage are made of."""
    if run.sampler is not None:
        return f"{sampler_plan.sampler_blocks(run):,} blocks of {run.data.sequence_length}"
    layers, each = memory.layers_in_flight(run, stage), gb_number(memory.layer_activation_bytes(run))
    return f"{layers:g} layers in flight x {each}; recompute {run.parallel.recompute}"


def images_part(run: RunConfig, need: memory.StageMemory) -> list[tuple[str, int, str]]:
    """What the tower and the projector keep on the stage; no line for text runs."""
    if run.vision is None:
        return []
    count = vision_plan.images_in_flight(run, row_counts.micro_batches(run)) if need.stage == 0 else 0
    each = gb_number(vision_plan.vision_activation_bytes(run))
    tower = "recomputed" if vision_plan.tower_recomputes(run) else "not recomputed"
    return [("images", need.images, f"{count} micro-batch(es) in flight x {each}; tower {tower}")]


def transient_note(run: RunConfig, need: memory.StageMemory) -> str:
    """What comes and goes in a step."""
    parts = f"LM head {gb_number(need.head)}, layer backward {gb_number(need.layer_backward)}"
    if run.vision is None:
        return f"larger of {parts}"
    return f"largest of {parts}, tower backward {gb_number(need.image_backward)}"


def memory_verdict(need: memory.StageMemory) -> str:
    """Whether the planned bytes fit the GPU that is planned with."""
    capacity = f"{memory.CAPACITY / GB:g} GB GPU"
    return f"fits an {capacity}" if need.fits else f"DOES NOT FIT an {capacity}"


def gb_number(size: float) -> str:
    """Bytes as GB of 1e9 bytes."""
    return f"{size / GB:.3f}"


def disk_lines(run: RunConfig) -> list[Line]:
    """The size of a checkpoint on disk."""
    size = memory.checkpoint_size(run)
    parts = f"weights {gb_number(size.weights)}, optimizer {gb_number(size.optimizer)}"
    return [("checkpoint", f"{gb_number(size.total)} GB on disk ({parts}); at most {run.checkpoint.keep} kept")]


def scale_report(run: RunConfig) -> list[str]:
    """The network, checkpoints, failures and dollars under a headline; nothing where they are not planned."""
    lines = scale.scale_lines(run)
    headline = f"at scale, on {run.parallel.world_size} H100 (what is assumed: docs/scale.md)"
    return ["", headline, aligned_lines([(f"  {label}", text) for label, text in lines])] if lines else []
