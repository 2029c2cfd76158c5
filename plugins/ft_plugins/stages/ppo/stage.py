"""Proximal policy optimisation against a reward model (arXiv 1707.06347, 2009.01325)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ft_plugins.engines.transformers.reward_head import check_head
from ft_plugins.stages.auxiliary_models import load_frozen
from ft_plugins.stages.ppo import reward_models
from ftcore.api.components import Harmless, OptionGroup, Stage
from ftcore.api.option_groups import Names
from ftcore.errors import Problem

if TYPE_CHECKING:
    from ft_plugins.stages.ppo.objective import PolicyObjective, Score
    from ftcore.api.plan import Plan, Run
    from ftcore.data.chat_template.renderer import Renderer

PLAIN = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_beams": 1, "repetition_penalty": 1.0}
"""Generation options and the values that stage ppo samples with: log-probabilities are then the policy's own."""


class PpoOptions(OptionGroup):
    """Rewards, rollouts and losses."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = dict.fromkeys(
        ("reward_api_timeout", "reward_api_retries"), Harmless("a missing score ends the run")
    )

    reward_model: str | None = None
    """The reward model. With ``reward_model_type: lora``, an adapter that stage rm trained on ``model_name_or_path``.
    With ``full``, a sequence-classification model with one label and the policy's tokenizer and template. With ``api``,
    the HTTP address of a reward server."""
    reward_model_type: Literal["lora", "full", "api"] = "lora"
    """Kind of ``reward_model``: an adapter, a whole model, or the address of a server."""
    reward_api_timeout: Annotated[float, Field(gt=0)] = 60.0
    """With ``api``: seconds to wait for a response."""
    reward_api_retries: Annotated[int, Field(ge=0, le=10)] = 3
    """With ``api``: retries after no response or a server error."""
    reward_model_adapters: Names = ()
    """With ``full``: adapters trained by stage rm, loaded on ``reward_model``."""
    ppo_buffer_size: Annotated[int, Field(ge=1)] = 1
    """Prompts per rollout, counted in optimizer batches."""
    ppo_epochs: Annotated[int, Field(ge=1)] = 4
    """Training epochs over each rollout."""
    ppo_score_norm: bool = False
    """Normalise scores to mean 0 and variance 1 by their running statistics."""
    ppo_score_clip: Annotated[float, Field(gt=0)] | None = None
    """Clip scores to this absolute value, after normalisation; unset, scores are not clipped."""
    ppo_whiten_rewards: bool = False
    """Scale the tokens' rewards to variance 1 over the rollout."""
    ppo_missing_eos_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Subtracted from the score of a response that ``max_new_tokens`` cut off."""
    ppo_kl_coef: Annotated[float, Field(ge=0)] = 0.2
    """Initial weight of each token's KL divergence from the reference."""
    ppo_adaptive_kl: bool = True
    """Adapt the weight so that the KL divergence approaches ``ppo_target``; false keeps it fixed."""
    ppo_target: Annotated[float, Field(gt=0)] = 6.0
    """Target KL divergence of a response."""
    ppo_kl_horizon: Annotated[int, Field(ge=1)] = 10_000
    """Number of responses over which the weight adapts."""
    ppo_kl_estimator: Literal["k1", "k3"] = "k1"
    """KL estimator: k1 is the log-ratio, k3 the estimate that is never negative."""
    ppo_clip: Annotated[float, Field(gt=0)] = 0.2
    """Clipping range of the ratio of a token's probability to that at the rollout."""
    ppo_value_clip: Annotated[float, Field(gt=0)] = 0.2
    """Clipping range of a value around that at the rollout."""
    ppo_value_coef: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the value loss."""
    ppo_value_backbone: Literal["shared", "separate"] = "shared"
    """Input of the value head. ``shared``: the policy's hidden states, which the value loss then trains too.
    ``separate``: those of a copy of the policy, trained by the value loss alone. The copy shares the frozen weights and
    needs a second forward and backward pass."""
    ppo_gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Discount factor of rewards."""
    ppo_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation."""


class ProximalPolicy(Stage):
    """Samples responses and raises the likelihood of those that a reward model scores high."""

    Options = PpoOptions
    samples: ClassVar[tuple[str, ...]] = ("Prompt",)
    deterministic_rows: ClassVar[bool] = False

    def max_seq_len(self, plan: Plan) -> int:
        """Tokens of a prompt and its response."""
        return plan.data.cutoff_len + plan.generation.max_new_tokens

    def planned_sequences(self, plan: Plan) -> float:
        """Twice as many where the value head has a separate backbone."""
        return 2.0 if has_own_values(plan) else 1.0

    def memory(self, plan: Plan) -> Mapping[str, int]:
        """Reward model, value head and rollout."""
        return reward_models.memory(plan, own_values=has_own_values(plan))

    def auxiliary_models(self, plan: Plan) -> Mapping[str, Plan]:
        """The reward model, unless it is a server."""
        options: Any = plan.stage.options
        return {} if options.reward_model_type == "api" else {"reward_model": reward_models.reward_plan(plan)}

    def datasets(self, run: Run) -> Any:
        """Prompts."""
        from ftcore.data.pipeline.loading import chat_datasets

        return chat_datasets(run.plan, run.tokenizer)

    def objective(self, run: Run) -> PolicyObjective:
        """A `PolicyObjective` with the reward model and the sampler."""
        from ft_plugins.stages.ppo.objective import PolicyObjective, Proximal
        from ftcore.data.chat_template.renderer import Renderer
        from ftcore.training.sampling import Sampler

        plan, options = run.plan, run.plan.stage.options
        assert isinstance(options, PpoOptions)
        renderer = Renderer.from_plan(plan, run.tokenizer)
        return PolicyObjective(
            run,
            score=api_model(run) if options.reward_model_type == "api" else reward_model(run, renderer),
            sampler=Sampler.of(run),
            options=Proximal(
                buffer=options.ppo_buffer_size,
                epochs=options.ppo_epochs,
                coefficient=options.ppo_kl_coef,
                target=options.ppo_target if options.ppo_adaptive_kl else None,
                horizon=options.ppo_kl_horizon,
                estimator=options.ppo_kl_estimator,
                clip=options.ppo_clip,
                value_clip=options.ppo_value_clip,
                value_weight=options.ppo_value_coef,
                discount=options.ppo_gamma,
                decay=options.ppo_lambda,
                whiten_rewards=options.ppo_whiten_rewards,
                norm_scores=options.ppo_score_norm,
                clip_scores=options.ppo_score_clip,
                missing_stop=options.ppo_missing_eos_penalty,
                own_values=has_own_values(plan),
            ),
        )


def has_own_values(plan: Plan) -> bool:
    """Whether values come from a copy of the policy."""
    options: Any = plan.stage.options
    return bool(options.ppo_value_backbone == "separate")


def reward_model(run: Run, renderer: Renderer) -> Score:
    """Loads the reward model. It scores prompt and response in the form that stage rm trained on.

    Raises:
        UsageError: no such model, or one of another base, with another tokenizer, or without a trained head.
        RunError: the sizes of the vocabularies differ.
    """
    from ftcore.training.backend import backend_of
    from ftcore.training.batching.collators import collate, on_device
    from ftcore.training.forward.reward import RewardForward
    from ftcore.training.model_transforms import capability_cache
    from ftcore.training.sampling import answered

    reward_models.check_adapters(run.plan)
    reward_models.check_tokens(run.plan, renderer)
    judged = reward_models.reward_plan(run.plan)
    model = load_frozen(judged, run.model, "reward_model").to(run.model.device)
    check_head(judged, model, run.plan.where("reward_model"), reward_models.HINT, "reward_model")
    scorer = RewardForward(model, backend_of(run))
    capability_cache.probe_capabilities(scorer)
    tail = after_answers(renderer)

    def score(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Any:
        whole = [[*response, *(tail if response[-1] in renderer.stop_ids else ())] for response in responses]
        rows = [answered(prompt, response, 0) for prompt, response in zip(prompts, whole, strict=True)]
        return scorer.rewards(on_device(collate(rows), model.device))

    return score


def api_model(run: Run) -> Score:
    """Scores from the server at the address ``reward_model``."""
    import torch

    from ft_plugins.stages.ppo.remote_reward import ask

    options: Any = run.plan.stage.options

    def score(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Any:
        whole = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        texts = run.tokenizer.batch_decode(whole, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        scores = ask(options.reward_model, texts, options.reward_api_timeout, options.reward_api_retries)
        return torch.tensor(scores, dtype=torch.float64)

    return score


def after_answers(renderer: Renderer) -> list[int]:
    """The tokens that the template writes after the stop token of an answer."""
    ids = reward_models.probe_ids(renderer, "!")
    ends = [position for position, token in enumerate(ids) if token in renderer.stop_ids]
    return ids[ends[-1] + 1 :] if ends else []


def problems(plan: Plan) -> Iterable[Problem]:
    """A missing reward model, and options that stage ppo does not use."""
    options = plan.stage.options
    assert isinstance(options, PpoOptions)
    if not options.reward_model:
        hint = "write the output_dir of an rm run, and for a whole model reward_model_type: full"
        yield Problem("reward_model is missing", plan.where("stage"), hint)
    elif options.reward_model_type == "api":
        if not options.reward_model.startswith(("http://", "https://")):
            reason = f"reward_model: {options.reward_model} is not an HTTP address"
            yield Problem(reason, plan.where("reward_model"), "write http://HOST:PORT/PATH")
    else:
        yield from reward_models.problems(plan)
    for name in ("reward_api_timeout", "reward_api_retries"):
        if options.reward_model_type != "api" and name in plan.options and plan.options[name].origin != "default":
            yield Problem(f"{name} applies to reward_model_type: api only", plan.where(name), "remove it")
    if options.reward_model_adapters and options.reward_model_type != "full":
        reason, hint = "reward_model_adapters applies to reward_model_type: full only", "write that, or remove it"
        yield Problem(reason, plan.where("reward_model_adapters"), hint)
    if has_own_values(plan) and not options.ppo_value_coef:
        reason = "ppo_value_backbone: separate is not trained, because ppo_value_coef is 0"
        hint = "write ppo_value_backbone: shared, or a ppo_value_coef above 0"
        yield Problem(reason, plan.where("ppo_value_backbone"), hint)
    for name, plain in PLAIN.items():
        bound = plan.options.get(name)
        if bound and bound.origin not in ("default", "family") and bound.value != plain:
            reason = f"{name} is {bound.value}, and stage ppo always samples with {name}: {plain}"
            yield Problem(reason, plan.where(name), "remove it, or write it in the file for ft chat and ft generate")
    if plan.generation.max_length is not None:
        yield Problem("max_length has no effect in stage ppo", plan.where("max_length"), "write max_new_tokens")
