"""The studies: every choice of the recipe that can be tried in miniature, with what the paper says of it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from nld_train.config import DiffusionConfig, DrafterConfig, NoiseLaw, RunConfig
from nld_train.study.contract import (
    ACCEPTED_LENGTH,
    AR_LOSS,
    DIFFUSION_LOSS,
    EXPECTED_LENGTH,
    FIRST,
    LAST,
    PER_FORWARD,
    SQUARED_NORM,
    STEPS,
    USUAL_NORM,
    Study,
    StudyArm,
    StudyClaim,
)
from nld_train.study.miniature import BATCH, BLOCK, Miniature

# What stage 2 is but for the choice that a study changes.
PLAIN = DiffusionConfig(alpha=0.3, block_size=BLOCK, mask_token_id=100)
JOINT = "joint"  # the folder of stage 2 begins so
BOTH = (AR_LOSS, DIFFUSION_LOSS)
ALPHAS = (0.1, 0.2, 0.3, 0.5, 1.0)
BLOCKS = (4, 8, 16, 32)
LAWS: tuple[NoiseLaw, ...] = ("uniform", "stratified", "per_block", "complementary")
STILL_STEPS = 100
MANY = 16  # times the batch, for the gradient that the noise blurs


def joint_arm(name: str, diffusion: DiffusionConfig, choice: str) -> StudyArm:
    """Both stages, then the judge. choice: the word for the folder of stage 2, where it is not PLAIN's."""
    what = JOINT if diffusion == PLAIN else f"{JOINT}_{choice}"

    def runs(miniature: Miniature, seed: int) -> Sequence[RunConfig]:
        first, second = miniature.joint_stage(seed, diffusion, what)
        return first, second, miniature.judge(second)

    return StudyArm(name, runs)


def plain_stages(miniature: Miniature, seed: int) -> tuple[RunConfig, RunConfig]:
    """What other chains start from: both stages as `joint_arm` has them of PLAIN."""
    return miniature.joint_stage(seed, PLAIN, JOINT)


def one_stage_runs(miniature: Miniature, seed: int) -> Sequence[RunConfig]:
    only = miniature.only_joint_stage(seed, PLAIN)
    return only, miniature.judge(only)


def chat_runs(diffusion: DiffusionConfig, what: str, miniature: Miniature, seed: int) -> Sequence[RunConfig]:
    first, second = plain_stages(miniature, seed)
    third = miniature.chat_stage(seed, second, diffusion, what)
    return first, second, third, miniature.judge(third)


def still_runs(law: NoiseLaw, batch: int, steps: int, miniature: Miniature, seed: int) -> Sequence[RunConfig]:
    first, second = plain_stages(miniature, seed)
    alone = replace(PLAIN, alpha=1.0, ar_weight=0.0, noise_law=law)
    return first, second, miniature.held_still(seed, second, alone, batch, steps)


def drafter_runs(drafter: DrafterConfig, what: str, miniature: Miniature, seed: int) -> Sequence[RunConfig]:
    first, second = plain_stages(miniature, seed)
    return first, second, miniature.drafter_stage(seed, second, drafter, what)


def averaging_study() -> Study:
    sequence = replace(PLAIN, average="sequence")
    arms = (
        StudyArm("one denominator of the global batch", partial(chat_runs, PLAIN, "chat")),
        StudyArm("every row its own", partial(chat_runs, sequence, "chat_sequence")),
    )
    claims = [StudyClaim(figure, arms[0].name, arms[1].name, "54.23 -> 56.35 points") for figure in BOTH]
    question = "Does one denominator over the global batch beat an average of each row's own?"
    note = "Tried in SFT: in full rows of text every token is supervised, and the two are the same number."
    return Study("averaging", question, arms, BOTH, claims, note)


def noise_sharing_study() -> Study:
    own, rank, step = "a level for every row", "one for each of two ranks", "one for the whole step"
    arms = (
        joint_arm(own, PLAIN, "row_level"),
        joint_arm(rank, replace(PLAIN, level_rows=BATCH // 2), "rank_level"),
        joint_arm(step, replace(PLAIN, level_rows=BATCH), "step_level"),
    )
    claims = (
        StudyClaim(DIFFUSION_LOSS, rank, step, "56.35 -> 57.06 points"),
        StudyClaim(DIFFUSION_LOSS, own, step, ""),
        StudyClaim(DIFFUSION_LOSS, own, rank, ""),
    )
    return Study("noise-sharing", "Should rows, ranks or steps have noise levels of their own?", arms, BOTH, claims)


def stages_study() -> Study:
    two, one = "AR first, then both losses", "both losses from the start"
    arms = (joint_arm(two, PLAIN, "two_stages"), StudyArm(one, one_stage_runs))
    claims = [StudyClaim(figure, two, one, "57.06 -> 62.80 points") for figure in BOTH]
    note = "At equal tokens; the one stage takes 1.3 times the compute, because all its rows are doubled."
    return Study("stages", "Are two stages better than one, at equal tokens?", arms, BOTH, claims, note)


def ar_loss_study() -> Study:
    both, alone = "both losses in stage 2", "the diffusion loss alone"
    arms = (joint_arm(both, PLAIN, "with_ar"), joint_arm(alone, replace(PLAIN, ar_weight=0.0), "no_ar"))
    claims = [StudyClaim(figure, both, alone, "62.80 -> 70.28 points") for figure in (DIFFUSION_LOSS, AR_LOSS)]
    return Study("ar-loss", "Does the AR loss help the diffusion mode?", arms, BOTH, claims)


def alpha_study() -> Study:
    arms = [joint_arm(f"{alpha:g}", replace(PLAIN, alpha=alpha), f"alpha{alpha:g}") for alpha in ALPHAS]
    claims = (
        StudyClaim(AR_LOSS, "0.3", "0.1", "68.71 -> 70.62 points"),
        StudyClaim(AR_LOSS, "0.3", "1", "67.22 -> 70.62 points"),
        StudyClaim(DIFFUSION_LOSS, "0.3", "0.1", "68.20 -> 69.77 points"),
        StudyClaim(DIFFUSION_LOSS, "0.3", "1", "66.93 -> 69.77 points"),
    )
    return Study("alpha", "How much should the diffusion loss weigh?", arms, BOTH, claims)


def block_size_study() -> Study:
    arms = [joint_arm(f"{size}", replace(PLAIN, block_size=size), f"block{size}") for size in BLOCKS]
    figures = (*BOTH, ACCEPTED_LENGTH, PER_FORWARD)
    paper = ("2.89 -> 4.17, of an oracle", "4.17 -> 5.68, of an oracle", "5.68 -> 7.60, of an oracle")
    pairs = zip(BLOCKS, BLOCKS[1:], paper, strict=False)
    claims = [StudyClaim(PER_FORWARD, f"{longer}", f"{shorter}", text) for shorter, longer, text in pairs]
    note = "Trained and decoded at one block size. The diffusion losses of two block sizes are those of two tasks."
    return Study("block-size", "How long should blocks be?", arms, figures, claims, note)


def noise_law_study() -> Study:
    arms = [joint_arm(law, replace(PLAIN, noise_law=law), law) for law in LAWS]
    claims = [StudyClaim(figure, law, "uniform", "") for law in LAWS[1:] for figure in BOTH]
    return Study("noise-law", "Which noise law lowers the loss?", arms, BOTH, claims)


def noise_variance_study() -> Study:
    arms = [StudyArm(law, partial(still_runs, law, BATCH, STILL_STEPS), STEPS) for law in LAWS]
    many = StudyArm(
        f"uniform, {MANY} x the rows", partial(still_runs, "uniform", BATCH * MANY, STILL_STEPS // MANY), STEPS
    )
    figures = (SQUARED_NORM, USUAL_NORM)
    claims = [StudyClaim(figure, law, "uniform", "") for law in LAWS[1:] for figure in figures]
    note = (
        "Of the diffusion term's gradient g at weights that stand still: E|g|^2 = |E g|^2 + the variance. All laws "
        f"have the same E g, so the differences are those of the variance. {MANY} times the rows have 1/{MANY} of the "
        "variance, which tells how much of the first figure it is. A weight 1/p of up to 1,000 makes some steps very "
        "large, so the mean is noisy; the median is what most steps have."
    )
    question = "Which noise law lowers the gradient's variance?"
    return Study("noise-variance", question, (*arms, many), figures, claims, note)


def drafter_study() -> Study:
    runs = partial(drafter_runs, DrafterConfig(), "drafter")
    arms = (StudyArm("without the adapter", runs, FIRST), StudyArm("with it", runs, LAST))
    claims = (StudyClaim(ACCEPTED_LENGTH, "with it", "without the adapter", "5.46 -> 6.82 tokens"),)
    return Study("drafter", "Does a LoRA that drafts raise the accepted length?", arms, (ACCEPTED_LENGTH,), claims)


def drafter_loss_study() -> Study:
    chosen = {
        "lk_hybrid": DrafterConfig(),
        "accepted_length": DrafterConfig(loss="accepted_length"),
        "first_failure": DrafterConfig(loss="first_failure"),
        "all_places, weighted": DrafterConfig(loss="all_places", place_decay=0.8, first_error_weight=2.0),
    }
    arms = [
        StudyArm(
            name, partial(drafter_runs, drafter, "drafter" if name == "lk_hybrid" else f"drafter_{drafter.loss}"), LAST
        )
        for name, drafter in chosen.items()
    ]
    figures = (ACCEPTED_LENGTH, EXPECTED_LENGTH)
    claims = [StudyClaim(figure, name, "lk_hybrid", "") for name in list(chosen)[1:] for figure in figures]
    note = (
        "Accepted length: of greedy drafts. Expected length: an estimate of it, were all drafts sampled at temperature "
        "1. The claims are those of arXiv 2606.11552 and 2607.01893, on other models; the weights 0.8 and 2 are ours."
    )
    return Study("drafter-loss", "Which loss should a drafter lower?", arms, figures, claims, note)


STUDIES = {
    study.name: study
    for study in (
        averaging_study(),
        noise_sharing_study(),
        stages_study(),
        ar_loss_study(),
        alpha_study(),
        block_size_study(),
        noise_law_study(),
        noise_variance_study(),
        drafter_study(),
        drafter_loss_study(),
    )
}
