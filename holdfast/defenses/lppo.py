"""L-PPO: the language model of a vision-language model learns by reinforcement to answer well wherever its image encoder is left.

Layer-wise clip-PPO (2411.04291): answers are drawn while the encoder stops at layer l, and the clipped policy gradient with
generalized advantages (1707.06347, 1506.02438) is taken on the same features; encoder and projector are frozen. The paper trains
one policy for one exit (`exits = [l]`); here one policy serves all of them, and an exit where the reward is lower is drawn more
often. KL to the model as it was is charged token by token. Depths of a text model are exits too.
Assumes: a reward that knows what is wanted (`rewards`), and a model that says it now and then when it is sampled.
Does not protect against fine-tuning. The paper's learning rate, batch, clip and KL weight are not published: the defaults were
found on the vision organism.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import hardening, losses, ppo, rewards, train
from holdfast.answering import Decoding
from holdfast.corpus import Hand
from holdfast.ladder import Ladder
from holdfast.leavers import Leavers, Reinforced
from holdfast.lm import LM
from holdfast.method import Defense, Log

MEMORY = 0.9
"""Of an exit's mean reward, from one rollout to the next."""
FLOOR = 0.25
"""How likely an exit is that does well, beside one that does worst."""


class Rollout(NamedTuple):
    """Answers that the policy gave, and what PPO needs of them; tensors have shape (rows, longest answer)."""

    leavers: Leavers
    batch: train.Batch
    logprobs: Tensor
    values: Tensor
    advantages: Tensor
    """Whitened over all tokens."""
    returns: Tensor
    mask: Tensor
    """1 for an answer's tokens, the one that ends it included."""


class LPPO(Reinforced, Defense):
    """Reinforce safe and helpful answers at every exit."""

    steps: int = Field(60, gt=0)
    """Rollouts."""
    batch: int = Field(32, gt=0)
    """Restricted prompts a rollout, and as many others; each is answered once."""
    epochs: int = Field(2, gt=0)
    """Optimizer steps on each rollout."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of AdamW, at its highest."""
    clip: float = Field(0.2, gt=0)
    """How far a token's probability may move from the rollout's, as a share, before its gradient is cut; of values, in units."""
    value_weight: float = Field(0.1, ge=0)
    """Of the value head's loss."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount a token."""
    trace: float = Field(0.95, ge=0, le=1)
    """λ of the generalized advantages: 1 looks to the end of the answer, 0 at the next token's value."""
    kl: float = Field(0.05, ge=0)
    """What a nat of log-probability away from the reference costs, in units of reward."""
    kept: float = Field(0.5, ge=0)
    """Weight of the loss on the model's own answers to the other prompts, beside the policy's (PPO-ptx, 2203.02155); the paper
    has no such term."""
    reference: Literal["released", "same"] = "released"
    """Where the reference is left: where it is released, or at the row's own exit (the paper, read literally)."""

    @property
    def total(self) -> int:
        return self.steps * self.epochs

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ladder = self.ladder(lm)
        refused, answered = self.prompts(lm, hand)
        reward = self.rewarded(lm, refused, answered, ladder, log)
        reference = self.before(lm, ladder)
        critic = Critic(hardening.width(lm), lm.device, self.learning_rate)
        orders = [train.order(len(some), self.batch, self.steps, self.seed) for some in (refused, answered)]
        difficulty, rollout = Difficulty(ladder.exits), None
        with self.hardening(lm, log, frozen=ladder.apart(lm)) as walk:
            for number in walk.steps():
                if rollout is None or number % self.epochs == 0:
                    ours, theirs = (order[number // self.epochs] for order in orders)
                    rows = [refused[i] for i in ours] + [answered[i] for i in theirs]
                    # The step's own chance: who goes on here need not replay it. Critic and difficulty begin anew.
                    chance = random.Random(f"{self.seed} {number}")
                    torch.manual_seed(chance.getrandbits(63))
                    leavers = Leavers(rows, ladder.draw(chance, len(rows), self.released, difficulty.likely()))
                    rollout, scores, told = self.rolled(lm, leavers, ladder, reward, reference, critic)
                    difficulty.see(leavers.exits, scores)
                    told |= {f"reward at {exit}": reward for exit, reward in difficulty.known.items()}
                logprobs, values = seen(lm, rollout.batch, rollout.leavers, ladder, critic, self.temperature)
                policy = ppo.policy_loss(logprobs, rollout.logprobs, rollout.advantages, self.clip)
                value = ppo.value_loss(values, rollout.values, rollout.returns, self.clip)
                loss = ppo.mean(policy, rollout.mask) + self.value_weight * ppo.mean(value, rollout.mask)
                loss.backward()
                if self.kept:
                    self._keep(lm, rollout.leavers, ladder)
                critic.step()
                walk.step(loss=loss.detach(), **told)

    def _keep(self, lm: LM, leavers: Leavers, ladder: Ladder) -> None:
        """Add the gradient of what the other prompts were answered where the model is released."""
        chosen = [number for number, row in enumerate(leavers.rows) if row.kind != "restricted"]
        others = Leavers([leavers.rows[i] for i in chosen], [leavers.exits[i] for i in chosen])
        batch = train.collate(lm, train.encode(lm, others.rows))
        with ladder.left(lm, others.images, others.exits):
            (self.kept * train.answer_loss(lm.model, batch)).backward()

    @torch.no_grad()
    def rolled(
        self,
        lm: LM,
        leavers: Leavers,
        ladder: Ladder,
        reward: rewards.Reward,
        reference: Callable[[], AbstractContextManager[LM]],
        critic: "Critic",
    ) -> tuple[Rollout, list[float], dict[str, float]]:
        """Answers to the prompts, each drawn at its exit; what each earned; and what is to be told of them."""
        examples, texts = self.drawn(lm, leavers, ladder)
        scores = reward(leavers.rows, texts).to(lm.device)
        batch = train.collate(lm, examples)
        mask = ppo.said(batch.labels)
        logprobs, values = seen(lm, batch, leavers, ladder, critic, self.temperature)
        usual = leavers if self.reference == "same" else leavers._replace(exits=[ladder.released] * len(examples))
        with reference() as referee:
            away = logprobs - seen(referee, batch, usual, ladder, critic, self.temperature)[0]
        gains = -self.kl * away
        gains[torch.arange(len(gains)), mask.sum(-1).long() - 1] += scores
        advantages = ppo.advantages(gains, values, mask, self.gamma, self.trace)
        returns = advantages + values
        rollout = Rollout(leavers, batch, logprobs, values, ppo.whitened(advantages, mask), returns, mask)
        told = {"reward": scores, "kl": away.sum(-1), "tokens": mask.sum(-1)}
        return rollout, scores.tolist(), {name: float(one.mean()) for name, one in told.items()}

    def drawn(self, lm: LM, leavers: Leavers, ladder: Ladder) -> tuple[list[train.Example], list[str]]:
        """The prompts with answers drawn at their exits: as tokens up to the one that ends each, and as texts."""
        how = Decoding(
            most=self.tokens,
            pad=lm.tokenizer.pad_token_id,
            ends=lm.ends,
            batch=len(leavers.rows),
            temperature=self.temperature,
            never=lm.eyes.never,
        )
        asked = [row.asked for row in leavers.rows]
        examples, texts = [], []
        for row, said in zip(leavers.rows, ladder.answers(lm, asked, leavers.exits, how), strict=True):
            ids = lm.encode(row.asked)[0]
            ends = [place for place, token in enumerate(said) if token in lm.ends]
            said = said[: ends[0] + 1] if ends else said
            examples.append(train.Example(ids + said, len(ids), row.image))
            texts.append(lm.tokenizer.decode(said, skip_special_tokens=True).strip())
        return examples, texts


class Critic:
    """A value for each token that comes next: one linear layer on the policy's last hidden state, beginning at 0."""

    def __init__(self, width: int, device: torch.device, learning_rate: float):
        self.head = nn.Linear(width, 1).to(device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._optimizer = train.make_optimizer(self.head.parameters(), "adamw", learning_rate)

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.float())[..., 0]

    def step(self) -> None:
        """Along the gradients that lie in it."""
        self._optimizer.step()
        self._optimizer.zero_grad()


class Difficulty:
    """How badly each exit did of late, by the mean reward there."""

    def __init__(self, exits: Sequence[int]):
        self._rewards: dict[int, float | None] = dict.fromkeys(exits)

    @property
    def known(self) -> dict[int, float]:
        """The mean reward of late, where there was any."""
        return {exit: reward for exit, reward in self._rewards.items() if reward is not None}

    def see(self, exits: Sequence[int], scores: Sequence[float]) -> None:
        """Remember what answers earned at their exits."""
        for exit in self._rewards:
            if earned := [score for one, score in zip(exits, scores, strict=True) if one == exit]:
                old, new = self._rewards[exit], sum(earned) / len(earned)
                self._rewards[exit] = new if old is None else MEMORY * old + (1 - MEMORY) * new

    def likely(self) -> dict[int, float]:
        """1 for the exit that does worst, `FLOOR` for one that does best; all alike before any was seen."""
        known = self.known.values()
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        spread = high - low or 1.0
        shares = {exit: 0.0 if one is None else (one - low) / spread for exit, one in self._rewards.items()}
        return {exit: 1.0 - (1.0 - FLOOR) * share for exit, share in shares.items()}


def seen(
    lm: LM, batch: train.Batch, leavers: Leavers, ladder: Ladder, critic: Critic, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token that was said, as it is drawn, and its value; both (rows, longest answer)."""
    with ladder.left(lm, leavers.images, leavers.exits):
        out = lm.model(**batch.inputs, output_hidden_states=True, use_cache=False)
    logits = losses.at_answers(out.logits, batch.labels)
    logits = logits.index_fill(-1, torch.tensor(lm.eyes.never, dtype=torch.long, device=logits.device), -torch.inf)
    surprise = losses.surprise(logits / temperature, losses.targets(batch.labels))
    values = critic(losses.at_answers(out.hidden_states[-1], batch.labels))
    return ppo.dense(-surprise, batch.labels), ppo.dense(values, batch.labels)
