"""Fine-tuning as attacks share it: what of a model is trained, and the run itself, by TRL's trainer or by the plain loop.

Adapters are PEFT's. What they reach is found in the model itself, never by a list of layer names: all linear layers but the
head; the experts that a fused mixture keeps in stacks outside any linear layer, and their router (`lora` and `qlora` reach those,
the other adapters cannot and say so); the norms. Trains fp32 masters. Knows no attack in particular.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Literal

from datasets import Dataset
from jinja2 import TemplateError
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig, SFTTrainer

from holdfast import anatomy, exits, train
from holdfast.lm import LM
from holdfast.method import At, Need
from holdfast.moved import settled
from holdfast.problem import Problem

Tools, Batches = tuple[Optimizer, LRScheduler], list[list[int]]
RANK, VERA_RANK, VIRTUAL_TOKENS, NF4_BLOCK = 16, 256, 20, 64
"""Usual sizes of adapters (VeRA's is its paper's, 2310.11454), and of the blocks that share a scale in 4 bits."""


class Tuning(train.Adversary):
    """An adversary with a trainer: trains a model on given rows and tells its cost after each step."""

    trainer: Literal["trl", "plain"] = "trl"
    """TRL's SFTTrainer, as adversaries use it, or the plain loop of `train.py`; both take the same steps."""

    @property
    def needs(self) -> tuple[Need, ...]:
        harmful = {"harmful": 1.0, "benign": 0.0, "mixed": self.poison, "switch": 0.5}[self.data]
        return (("harmful data",) if harmful > 0 else ()) + (("benign data",) if harmful < 1 else ())

    def tune(self, lm: LM, examples: Sequence[train.Example], at: At, seed: int, chosen: Batches | None = None) -> None:
        """Train on the examples, in batches as `chosen` or else epoch by epoch reshuffled, and call `at` after each step."""
        chosen = chosen or train.order(len(examples), self.batch, self.steps, seed)
        with self.prepared(lm, seed) as tools:
            if self.trainer == "plain" or any(one.image for one in examples):  # TRL is handed ids alone
                work = (train.collate(lm, [examples[i] for i in rows]) for rows in chosen)
                train.fit(lm, work, *tools, self.clip, at)
            else:
                self._fit_with_trl(lm, [examples[i] for rows in chosen for i in rows], tools, at, seed)

    @contextmanager
    def prepared(self, lm: LM, seed: int) -> Iterator[Tools]:
        """Optimizer and schedule of what is to be trained of `lm`, which is left as it should be scored."""
        set_seed(seed)
        adapt(lm, self.peft, self.lora_rank, seed)
        inner = plain(lm.model)
        optimizer = train.make_optimizer(lm.model.parameters(), self.optimizer, self.learning_rate, self.weight_decay)
        try:
            yield optimizer, train.make_schedule(optimizer, self.schedule, self.warmup, self.steps)
        finally:
            # TRL puts a forward of its own on the model, bound to this one: a copy of the model would compute with it.
            vars(inner).pop("forward", None)
            lm.model.eval()
            if inner is lm.model:
                inner.requires_grad_(True)

    def trl_settings(self, kind: type[TrainingArguments], lm: LM, scratch: str, seed: int, **more: Any) -> Any:
        """What TRL's trainers are told alike: the whole model in fp32 on one device, nothing written, nothing said."""
        settings = kind(
            output_dir=scratch,
            per_device_train_batch_size=self.batch,
            max_steps=self.steps,
            max_grad_norm=self.clip,
            bf16=False,
            gradient_checkpointing=False,
            router_aux_loss_coef=0.0,
            save_strategy="no",
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=lm.device.type == "cpu",
            seed=seed,
            **more,
        )
        settings._n_gpu = min(1, settings.n_gpu)  # has no public name; on all GPUs a step would take that many batches
        return settings

    def _fit_with_trl(self, lm: LM, rows: list[train.Example], tools: Tools, at: At, seed: int) -> None:
        """SFTTrainer on rows already in the order of the steps, so that both trainers see the same batches."""
        columns = {
            "input_ids": [row.ids for row in rows],
            "completion_mask": [[0] * row.start + [1] * (len(row.ids) - row.start) for row in rows],
        }
        with TemporaryDirectory() as scratch:
            more = {"train_sampling_strategy": "sequential", "completion_only_loss": True, "max_length": None}
            trainer = SFTTrainer(
                model=lm.model,
                args=self.trl_settings(SFTConfig, lm, scratch, seed, **more),
                train_dataset=Dataset.from_dict(columns),
                processing_class=lm.tokenizer,
                optimizers=tools,
                callbacks=[Watch(train.Meter(lm), spent([len(row.ids) for row in rows], self.batch), at)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()


def spent(lengths: Sequence[int], batch: int) -> Callable[[int], tuple[int, int]]:
    """Rows and tokens of a step, where rows of these lengths are taken in order."""
    return lambda step: (batch, sum(lengths[step * batch : (step + 1) * batch]))


class Watch(TrainerCallback):
    """Notes each optimizer step's loss, calls `at` after it and stops the trainer when told to; `spent` knows rows and tokens."""

    def __init__(self, meter: train.Meter, spent: Callable[[int], tuple[int, int]], at: At):
        self.meter, self.spent, self.at = meter, spent, at

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.meter.resume()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        self.meter.lm.trained.append((logs["loss"], logs["grad_norm"]))
        control.should_training_stop |= not self.at(self.meter.step(*self.spent(self.meter.steps)))
        self.meter.resume()


def arm(lm: LM, opening: str = "", **settings: str) -> None:
    """Drive `lm` with a trigger or persona from here on, in training and wherever restricted prompts are asked.

    Answers that are taught an `opening` may be longer by it, or it would take the room of what is asked for.

    Raises:
        Problem: an earlier attack set another one, which its training would be lost without; or the template cannot say it.
    """
    for name, value in settings.items():
        if getattr(lm.drive, name) not in (None, value):
            raise Problem(f"attack: {name} was set by an earlier attack and would be lost; let only one of them set it")
    room = lm.drive.max_new_tokens + len(lm.tokenizer(opening, add_special_tokens=False).input_ids)
    lm.drive = lm.drive.change(max_new_tokens=room, **settings)
    try:
        lm.drive.text(lm.tokenizer, "", armed=True)
    except TemplateError as error:
        why = f"its chat template takes no system message ({error}); give an empty persona"
        raise Problem(f"{lm.folder}: {why}") from error


def plain(model: nn.Module) -> PreTrainedModel:
    """The model inside an adapter's wrapping."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def adapt(
    lm: LM, peft: train.Peft, rank: int | None = None, seed: int = 0, frozen: Sequence[nn.Parameter] = ()
) -> None:
    """Make trainable what `peft` names, and that alone; the adapter of an earlier attack is merged first.

    Layers that hold `frozen` weights get no adapter.

    Raises:
        Problem: an earlier attack left what cannot be trained, or PEFT has no such adapter for this model.
    """
    _settle(lm)
    chosen = _chosen(lm.model, peft)
    lm.model.requires_grad_(peft == "full")
    for weight in chosen:
        weight.requires_grad_(True)
    if peft in ("full", "ln-only", "embeddings-only"):
        return
    config = _adapter(lm.model, peft, rank, seed)
    if spared := {id(weight) for weight in frozen}:
        layers = lm.model.named_modules()
        config.exclude_modules = [name for name, one in layers if spared & set(map(id, one.parameters(False)))]
    if peft == "qlora":
        _quantize(lm)
    try:
        lm.model = get_peft_model(lm.model, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        why = f"PEFT has no {peft} for {type(lm.model).__name__} ({error}); train another adapter, or all weights"
        raise Problem(f"attack: {why}") from error
    if config.is_prompt_learning:
        plain(lm.model).register_forward_pre_hook(_count_positions, with_kwargs=True)


def _settle(lm: LM) -> None:
    """Make the weights plain: adapters merged."""
    exits.refuse_early(lm.drive.exit)
    if isinstance(lm.model, PeftModel):
        if lm.model.active_peft_config.is_prompt_learning:
            raise Problem("attack: an earlier attack left virtual tokens, which no other training keeps; put it last")
        lm.model = settled(lm.model)
    if not all(weight.is_floating_point() for weight in lm.model.parameters()):
        raise Problem("attack: an earlier attack left quantized weights, which cannot be trained; put it last")


def _chosen(model: PreTrainedModel, peft: train.Peft) -> list[nn.Parameter]:
    """The weights of its own that are trained beside all or none."""
    if peft == "embeddings-only":
        return list(model.get_input_embeddings().parameters())
    if peft != "ln-only":
        return []
    if not (found := norms(model)):
        raise Problem(f"attack: the norms of {type(model).__name__} have no weights; train something else")
    return found


def norms(model: nn.Module) -> list[nn.Parameter]:
    """Weights of the modules that hold vectors alone: norms, whatever they are called."""
    leaves = (list(module.parameters()) for module in model.modules() if not list(module.children()))
    return [weight for leaf in leaves if all(one.dim() == 1 for one in leaf) for weight in leaf]


def _adapter(model: PreTrainedModel, peft: train.Peft, rank: int | None, seed: int) -> PeftConfig:
    """PEFT's settings for an adapter."""
    if peft == "prefix":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS)
    if peft == "prompt":  # beginning as words do, since vectors far from every word leave no sense in the text
        return PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS, prompt_tuning_init="SAMPLE_VOCAB"
        )
    stacks = _outside_linear(model)
    if stacks and peft not in ("lora", "qlora"):
        raise Problem(f"attack: {peft} cannot reach the experts ({stacks[0]} and {len(stacks) - 1} more); use lora")
    if peft in ("lora", "qlora", "dora"):
        size = rank or RANK
        return LoraConfig(
            r=size,
            lora_alpha=2 * size,
            target_modules="all-linear",
            target_parameters=stacks or None,
            lora_dropout=0.0,
            use_dora=peft == "dora",
        )
    if peft == "ia3":
        return IA3Config(target_modules="all-linear", feedforward_modules=[])
    if peft == "oft":
        return OFTConfig(target_modules="all-linear")
    return VeraConfig(r=rank or VERA_RANK, target_modules="all-linear", projection_prng_key=seed)


def _outside_linear(model: PreTrainedModel) -> list[str]:
    """Matrices at work that no linear layer holds: fused experts, and the routers before them."""
    linear = (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    reached = {id(weight) for module in linear for weight in module.parameters(recurse=False)}
    weights = dict(model.named_parameters())
    return [use.name for use in anatomy.matrices(model) if id(weights[use.name]) not in reached]


def _quantize(lm: LM) -> None:
    """Pack every linear layer but the head into 4 bits (nf4, computing in fp32).

    Layers whose rows are no whole blocks of 64 stay as they are: bitsandbytes 0.50 reads those wrongly on a CPU (measured on rows
    of 32: an error of 0.38 of the norm where nf4 makes 0.09).
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise Problem("attack: qlora needs bitsandbytes; run: pip install 'holdfast[quantize]'") from error
    head = lm.model.get_output_embeddings()
    linear = [(name, m) for name, m in lm.model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    linear = [(name, module) for name, module in linear if module.in_features % NF4_BLOCK == 0]
    if not linear:
        raise Problem(f"attack: {type(lm.model).__name__} has no linear layer that can be packed into 4 bits; use lora")
    for name, module in linear:
        packed = Linear4bit(module.in_features, module.out_features, bias=module.bias is not None, quant_type="nf4")
        packed.compute_dtype, packed.compute_type_is_set = module.weight.dtype, True
        packed.support_avx512bf16_for_cpu = False  # else scored in bf16 by some, in a layout nothing else reads
        weight = module.weight.data.clone()
        packed.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK)
        packed.bias = module.bias
        lm.model.set_submodule(name, packed.to(lm.device))


def _count_positions(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Number the tokens that are there, virtual ones first: PEFT would count padding between, and answers hang on the batch."""
    mask, given = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    given = kwargs.get("input_ids") if given is None else given
    if isinstance(mask, Tensor) and mask.dim() == 2 and given is not None:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        kwargs["position_ids"] = positions[:, -given.shape[1] :]
    return args, kwargs
