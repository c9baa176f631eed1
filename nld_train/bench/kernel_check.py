"""Are the kernels right on this machine? Outputs and gradients against float64, on many fresh random inputs.

Both sides get the same bf16 numbers. Two relative errors are bounded, of norms:

    whole   |got - expected| / |expected| of a whole tensor
    row     |got - expected| / (|expected| + mean |expected|) of the worst vector of one position and head; the mean
            keeps it finite for a query that sees one key and so has no gradient

With standard normal inputs, dense attention in bf16 reaches about half of the bounds. A pair that is wrongly seen or
hidden passes the bound of a row by far, because every other draw has scores of standard deviation 4, where single keys
decide.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch._dynamo.config as dynamo
from torch import Tensor

from nld_train.attention import reference
from nld_train.attention.backends import BACKENDS, AttentionFunction, BackendRequest, choose_backend
from nld_train.bench.attention import ORACLE
from nld_train.bench.head_loss import HeadInputs, HeadShape, chunked_head_nll, draw_head_inputs
from nld_train.bench.inputs import AttentionInputs, AttentionShape, draw_attention_inputs
from nld_train.bench.measure import FAILURES, TimeBudget, failure_line, free_device_memory
from nld_train.bench.outcome import NOTHING, OK, BenchOutcome, bench_environment
from nld_train.dual_stream.mask_spec import MaskSpec
from nld_train.errors import UserError
from nld_train.loss.cross_entropy import cross_entropy

logger = logging.getLogger(__name__)

HEAD = ["checked", "inputs", "draws", "worst whole", "worst row", "other bits", "result"]
SHARPNESS = (1.0, 4.0)  # standard deviation of the scores, in turn
PACKED = 4  # documents in a row
ANY_INPUTS = "any"  # the inputs of a kernel that is refused whatever it is given
MOST_PAIRS = 1 << 28  # pairs of one dense table; in float64 it takes 2 GiB
KERNELS = 256  # how many kernels torch may compile for one function, which needs one for every shape


@dataclass(frozen=True)
class ErrorBound:
    """The largest relative errors that are right; the module says what they are."""

    whole: float
    row: float


BOUNDS = {
    torch.bfloat16: ErrorBound(whole=1e-2, row=8e-2),
    torch.float32: ErrorBound(whole=2e-5, row=2e-4),
}


@dataclass
class KernelFinding:
    """The result of the draws of one kernel at one shape."""

    what: str
    inputs: str
    asked: int  # draws
    draws: int = 0  # draws that were compared
    whole: float = 0.0  # worst
    row: float = 0.0  # worst
    nondeterministic: int = 0  # draws whose second run gave other bits, because sums have no fixed order
    failed: str | None = None
    refused: str | None = None

    @property
    def verdict(self) -> str:
        """One of: WRONG with the reason, refused, ok, cut with the number of draws."""
        if self.failed is not None:
            return f"WRONG: {self.failed}"
        if self.refused is not None:
            return "refused"
        return OK if self.draws == self.asked else f"cut at {self.draws} of {self.asked}"

    def cells(self) -> list[str]:
        """The finding as a row of the table, in the columns of HEAD."""
        seen = [str(self.draws), f"{self.whole:.1e}", f"{self.row:.1e}", str(self.nondeterministic)]
        return [self.what, self.inputs, *(seen if self.draws else [NOTHING] * 4), self.verdict]


Draw = Callable[[int], tuple[Callable[[], tuple[Tensor, ...]], tuple[Tensor, ...]]]  # number -> (run, expected)
KernelCheck = Callable[[TimeBudget], KernelFinding]


@dataclass(frozen=True)
class DrawSettings:
    """How many inputs a kernel is checked on, and where."""

    draws: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class KernelCheckPlan:
    """The shapes that every kernel is checked at, and how often."""

    shapes: tuple[AttentionShape, ...]  # of attention; each also with packed documents
    full: AttentionShape  # of attention as it is measured, in few draws
    heads: tuple[HeadShape, ...]  # of the LM-head loss
    draws: int
    full_draws: int
    budget: float  # seconds; a kernel that did not get all its draws is reported as cut, not as ok


# The heads of the 8B model; rows that end within a tile, a chunk and a block; small heads in small blocks.
GPU_SHAPES = (
    AttentionShape(512, 32, 1, 32, 8, 128),
    AttentionShape(300, 32, 2, 8, 2, 128),
    AttentionShape(768, 16, 1, 8, 8, 64),
)
GPU_HEADS = (HeadShape(4096, 131_072, 512), HeadShape(1000, 50_001, 384), HeadShape(6143, 32_000, 256))
CPU_SHAPES = (
    AttentionShape(64, 32, 1, 8, 2, 64),
    AttentionShape(45, 8, 2, 4, 2, 32),
    AttentionShape(96, 16, 1, 4, 4, 16),
)
CPU_HEADS = (HeadShape(64, 2000, 32), HeadShape(37, 1001, 16), HeadShape(8, 300, 24))


def default_check_plan(device: torch.device, draws: int | None, budget: float) -> KernelCheckPlan:
    """The plan for a device. draws: for each kernel and shape; None: 200 on a GPU, 3 on a CPU."""
    if device.type == "cuda":
        return KernelCheckPlan(GPU_SHAPES, AttentionShape(4096, 32, 1, 32, 8, 128), GPU_HEADS, draws or 200, 3, budget)
    return KernelCheckPlan(CPU_SHAPES, AttentionShape(256, 32, 1, 8, 2, 64), CPU_HEADS, draws or 3, 1, budget)


def _fail_on_recompile_limit() -> None:
    """Beyond its limit torch would go on without compiling, and the check would no longer see the kernel."""
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = KERNELS
    dynamo.fail_on_recompile_limit_hit = True


def check_kernels(plan: KernelCheckPlan, dtype: torch.dtype, device: torch.device) -> BenchOutcome:
    """Check every backend but the oracle, and the LM-head loss, by the plan."""
    if device.type == "cuda":
        _fail_on_recompile_limit()
    findings, checks = [], list[KernelCheck]()
    for name in BACKENDS:
        for packed in (False, True) if name != ORACLE else ():
            try:
                request = BackendRequest(name, device.type, dtype, plan.full.head_dim, training=True, packed=packed)
                attend = choose_backend(request)
            except UserError as error:
                findings.append(
                    KernelFinding(f"attention: {name}", "packed" if packed else ANY_INPUTS, 0, refused=str(error))
                )
                break
            shapes = [replace(shape, documents=PACKED) for shape in plan.shapes] if packed else plan.shapes
            todo = [(shape, plan.draws) for shape in shapes] + ([] if packed else [(plan.full, plan.full_draws)])
            checks += [
                partial(check_attention_kernel, name, attend, shape, DrawSettings(draws, dtype, device))
                for shape, draws in todo
            ]
    checks += [partial(check_head_loss, shape, DrawSettings(plan.draws, dtype, device)) for shape in plan.heads]
    budget = TimeBudget(plan.budget)
    try:
        for number, check in enumerate(checks):
            findings.append(check(TimeBudget(budget.left / (len(checks) - number))))  # equal shares of what is left
            logger.info("%s, %s: %s", findings[-1].what, findings[-1].inputs, findings[-1].verdict)
    except KeyboardInterrupt:
        logger.info("stopped on request; what was checked until then follows")
    return _check_outcome(findings, len(checks), dtype, device)


def _check_outcome(findings: list[KernelFinding], asked: int, dtype: torch.dtype, device: torch.device) -> BenchOutcome:
    bound = BOUNDS[dtype]
    notes = [
        f"Bounds: whole {bound.whole:g}, row {bound.row:g}. Other bits: of how many draws the two runs differed at all."
    ]
    notes += [f"{one.what}, {one.inputs}: {one.refused}" for one in findings if one.refused is not None]
    return BenchOutcome(
        "correctness",
        f"outputs and gradients of fresh random draws, {dtype} against float64, each run twice",
        HEAD,
        [one.cells() for one in findings],
        notes,
        {"findings": [vars(one) | {"verdict": one.verdict} for one in findings], "asked": asked, "bound": bound.whole},
        wrong=any(one.failed is not None for one in findings),
        environment=bench_environment(device),
    )


def check_attention_kernel(
    name: str, attend: AttentionFunction, shape: AttentionShape, settings: DrawSettings, budget: TimeBudget
) -> KernelFinding:
    """Compare output and gradients of a backend at one shape with the dense reference in float64."""
    finding = KernelFinding(f"attention: {name}", str(shape), settings.draws)
    generator = torch.Generator(settings.device).manual_seed(shape.length)

    def draw(number: int) -> tuple[Callable[[], tuple[Tensor, ...]], tuple[Tensor, ...]]:
        sharpness = SHARPNESS[number % len(SHARPNESS)]
        given = draw_attention_inputs(shape, settings.dtype, settings.device, generator, sharpness=sharpness)
        spec = MaskSpec.from_documents(shape.layout, given.documents)

        def run() -> tuple[Tensor, ...]:
            output = attend(*given.leaves, spec, given.scale)
            return output.detach(), *given.gradients(output)

        return run, expected_attention(given, shape)

    return _compare_draws(finding, draw, settings, budget)


def check_head_loss(shape: HeadShape, settings: DrawSettings, budget: TimeBudget) -> KernelFinding:
    """Compare our LM-head loss and its gradients at one shape with plain arithmetic in float64."""
    finding = KernelFinding("LM-head loss", str(shape), settings.draws)
    generator = torch.Generator(settings.device).manual_seed(shape.rows)

    def draw(_: int) -> tuple[Callable[[], tuple[Tensor, ...]], tuple[Tensor, ...]]:
        given = draw_head_inputs(shape, settings.dtype, settings.device, generator)

        def run() -> tuple[Tensor, ...]:
            nll = chunked_head_nll(given)
            return nll.detach()[:, None], *given.gradients(nll)

        return run, _expected_head_loss(given)

    return _compare_draws(finding, draw, settings, budget)


def _compare_draws(finding: KernelFinding, draw: Draw, settings: DrawSettings, budget: TimeBudget) -> KernelFinding:
    """Draw, run twice and compare, until the first result that is out of bounds or the budget is spent."""
    bound = BOUNDS[settings.dtype]
    for number in range(finding.asked):
        if budget.left <= 0:
            break
        run, expected = draw(number)
        try:
            first, second = run(), run()
        except UserError as error:
            finding.refused = str(error)
            break
        except FAILURES as error:
            finding.failed = failure_line(error)
            break
        finding.nondeterministic += any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
        errors = [
            relative_errors(got, wanted) for one in (first, second) for got, wanted in zip(one, expected, strict=True)
        ]
        finding.whole = max(finding.whole, *(whole for whole, _ in errors))
        finding.row = max(finding.row, *(row for _, row in errors))
        finding.draws = number + 1
        if not all(whole <= bound.whole and row <= bound.row for whole, row in errors):  # NaN is never within
            finding.failed = f"draw {number} is out of bounds"
            break
    free_device_memory(settings.device)
    return finding


def relative_errors(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """The relative errors `whole` and `row` of a tensor [..., D] against `expected` [..., D]. NaN stays NaN."""
    error, sizes = (got.double() - expected).norm(dim=-1), expected.norm(dim=-1)
    whole = error.norm() / sizes.norm()
    return float(whole), float((error / (sizes + sizes.mean())).max())


def expected_attention(given: AttentionInputs, shape: AttentionShape) -> tuple[Tensor, ...]:
    """Output [B, H, S, D] and the gradients of query, key and value, by the dense reference in float64.

    Where its tables are large, one key head is computed at a time.
    """
    pairs = shape.rows * shape.heads * shape.layout.size**2
    parts_of_heads = shape.kv_heads if pairs > MOST_PAIRS else 1
    spec = MaskSpec.from_documents(shape.layout, given.documents)
    query, key, value, cotangent = (
        part.detach().double().chunk(parts_of_heads, 1) for part in (*given.leaves, given.cotangent)
    )
    parts = []
    for q, k, v, weight in zip(query, key, value, cotangent, strict=True):
        leaves = [part.requires_grad_() for part in (q, k, v)]
        output = reference.attend_reference(q, k, v, spec, given.scale)
        parts.append((output.detach(), *torch.autograd.grad(output, leaves, weight)))
    return tuple(torch.cat(part, 1) for part in zip(*parts, strict=True))


def _expected_head_loss(given: HeadInputs) -> tuple[Tensor, ...]:
    """Cross-entropy [R, 1] and the gradients of hidden [R, E] and weight [V, E], by plain arithmetic in float64."""
    wide = HeadInputs(
        given.hidden.detach().double().requires_grad_(),
        given.weight.detach().double().requires_grad_(),
        given.targets,
        given.shares.double(),
    )
    nll = cross_entropy(wide.hidden @ wide.weight.T, wide.targets)
    return nll.detach()[:, None], *wide.gradients(nll)
