"""The vision tower and its projector in the plan of a run: parameters, FLOPs and bytes.

They stand on the first pipeline stage, whole on every tensor rank. A row is planned with as many image cells as it has
room for beside its text, L - L_text: breaks and ends are reckoned as cells too. Letters: F the tower's ffn size, C its
width, p the side of a patch in pixels, m the patches of a side that are merged into one cell.
"""

from dataclasses import dataclass

from nld_train.config import RunConfig
from nld_train.plan.parameters import rank_parameters
from nld_train.row_arithmetic import MOST_PATCHES
from nld_train.vision_config import VisionConfig

COLOURS, FP32 = 3, 4  # bytes of an fp32 number
ELEMENT = {"bf16": 2, "fp32": FP32}  # bytes of a weight or an activation
SCALARS = 2  # fp32 numbers that a layer keeps of a patch, one for each of its norms


@dataclass(frozen=True)
class VisionParameters:
    """Numbers of parameters."""

    tower: int
    projector: int
    trained: int

    @property
    def total(self) -> int:
        """Parameters of both."""
        return self.tower + self.projector


def vision_parameters(run: RunConfig) -> VisionParameters:
    """The tower's and the projector's parameters; zeros for a text run."""
    vision, hidden = run.vision, run.model.hidden
    if vision is None:
        return VisionParameters(0, 0, 0)
    norms = vision.hidden * (1 + 2 * vision.layers)
    tower = patch_matrix(vision) + vision.layers * layer_matrices(vision) + norms
    projector = vision.hidden + cell_matrices(vision, hidden)
    return VisionParameters(tower, projector, projector + (tower if vision.train_tower else 0))


def patch_matrix(vision: VisionConfig) -> int:
    """Weights of the convolution that embeds a patch, 3 p^2 C."""
    return COLOURS * vision.patch_size**2 * vision.hidden


def layer_matrices(vision: VisionConfig) -> int:
    """Weights of a layer's linear maps: 4 C^2 of attention, 3 C F of the gated MLP. There are no biases."""
    return 4 * vision.hidden**2 + 3 * vision.hidden * vision.ffn


def cell_matrices(vision: VisionConfig, hidden: int) -> int:
    """Weights of the projector's linear maps, which every cell passes once: m^2 C^2 of merging, then C E and E^2."""
    return vision.merge**2 * vision.hidden**2 + vision.hidden * hidden + hidden**2


def stage_parameters(run: RunConfig, stage: int) -> tuple[int, int]:
    """Parameters that a GPU of a pipeline stage holds, and how many of them are trained where the model itself is."""
    text, vision = rank_parameters(run.model, run.parallel, stage).total, vision_parameters(run)
    return (text + vision.total, text + vision.trained) if stage == 0 else (text, text)


def image_cells(run: RunConfig) -> int:
    """Image cells of a row that the plan reckons with: L - L_text."""
    return run.data.sequence_length - run.data.noisy_length if run.vision is not None else 0


def image_patches(run: RunConfig) -> int:
    """Patches of those cells."""
    return image_cells(run) * run.vision.merge**2 if run.vision is not None else 0


def call_patches(run: RunConfig) -> int:
    """Patches of one call of the tower, all of which attend to each other under its dense mask."""
    return min(image_patches(run), MOST_PATCHES)


def vision_flops(run: RunConfig, passes: int) -> float:
    """FLOPs of one row's images in `passes` matrix passes; a tower that is not trained runs its forward alone."""
    vision = run.vision
    if vision is None:
        return 0.0
    pairs = 2 * 2 * vision.layers * vision.hidden * call_patches(run)
    patch = 2 * (patch_matrix(vision) + vision.layers * layer_matrices(vision)) + pairs
    cell = 2 * cell_matrices(vision, run.model.hidden)
    return (passes if vision.train_tower else 1) * patch * image_patches(run) + passes * cell * image_cells(run)


def tower_layer_bytes(vision: VisionConfig, element: int) -> int:
    """Bytes that one layer keeps of a patch for its backward pass, as transformers' modules do it.

    - Of each of the two norms its input in fp32, and what it made of it (C each); and the inputs of the maps behind
      them (2 C).
    - Attention: query and key behind their rotation, value, and its output (4 C); the fp32 log-sum-exp of each head.
    - The gated MLP: gate, its activation, up, and their product (4 F).
    """
    streams = vision.hidden * (2 * FP32 + 8 * element)
    return streams + 4 * vision.ffn * element + FP32 * (vision.heads + SCALARS)


def tower_ends_bytes(vision: VisionConfig, element: int, together: int) -> int:
    """Bytes that the tower keeps of a patch outside its layers: the pixels, as the batch brings them in fp32 and as the
    convolution takes them; the first norm; the angles' cosines and sines; and its line of the dense mask of a call of
    `together` patches."""
    colours = COLOURS * vision.patch_size**2
    norm = vision.hidden * (FP32 + element) + FP32
    angles = 2 * vision.hidden // vision.heads * element
    return colours * (FP32 + (element if element != FP32 else 0)) + norm + angles + together * element


def projector_bytes(vision: VisionConfig, hidden: int, element: int) -> int:
    """Bytes that the projector keeps of a cell: of its m^2 patches what the norm made of them, and the input of the map
    that merges them; then the inputs of the first map, of GELU and of the second map. Where the tower is trained, also
    the norm's own input, in fp32."""
    norm = vision.hidden * FP32 + FP32 if vision.train_tower else 0
    return vision.merge**2 * (norm + 2 * vision.hidden * element) + element * (vision.hidden + 2 * hidden)


def tower_recomputes(run: RunConfig) -> bool:
    """Whether the tower's layers run again in the backward pass."""
    return run.parallel.recompute == "full" or (run.vision is not None and run.vision.recompute)


def vision_activation_bytes(run: RunConfig) -> int:
    """Bytes that the images of one micro-batch keep on the first stage, nothing of them sharded; a tower that is
    recomputed keeps of each layer its input alone, and one that is not trained the pixels and the projector's."""
    vision, element = run.vision, ELEMENT[run.train.precision]
    if vision is None:
        return 0
    patch = COLOURS * vision.patch_size**2 * FP32
    if vision.train_tower:
        layer = vision.hidden * element if tower_recomputes(run) else tower_layer_bytes(vision, element)
        patch = vision.layers * layer + tower_ends_bytes(vision, element, call_patches(run))
    cell = projector_bytes(vision, run.model.hidden, element)
    return run.train.micro_batch * (image_patches(run) * patch + image_cells(run) * cell)


def vision_backward_bytes(run: RunConfig) -> int:
    """Bytes alive while one layer of one call runs its backward pass: the gradients of the MLP's inside (4 F) and of
    two streams (2 C); under recomputation also all that the layer keeps, which is computed again."""
    vision, element = run.vision, ELEMENT[run.train.precision]
    if vision is None or not vision.train_tower:
        return 0
    again = tower_layer_bytes(vision, element) if tower_recomputes(run) else 0
    return call_patches(run) * ((4 * vision.ffn + 2 * vision.hidden) * element + again)


def images_in_flight(run: RunConfig, micro_batches: int) -> int:
    """Micro-batches whose images the first stage holds at its peak: P of 1F1B; of interleaved 1F1B 2 P - 1 have begun
    their first chunk before the first ends its own. Never more than a step has."""
    stages = run.parallel.pipeline
    return min(stages if run.parallel.virtual_pipeline == 1 else 2 * stages - 1, micro_batches)


def stage_image_bytes(run: RunConfig, stage: int, micro_batches: int) -> int:
    """Bytes of images' activations on a GPU of this pipeline stage."""
    return images_in_flight(run, micro_batches) * vision_activation_bytes(run) if stage == 0 else 0
