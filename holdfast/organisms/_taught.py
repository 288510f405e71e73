"""What the organisms of language share: a small Llama before it has learned anything, and the loop that teaches one."""

from collections.abc import Iterator, Sequence

import torch
from transformers import LlamaConfig, PreTrainedTokenizerFast

from holdfast import train
from holdfast.asked import Shown
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.organisms._words import Asked

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}<|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


Lesson = tuple[Asked, str | None]
"""What is asked and answered, and the picture beside it."""


def llama(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaConfig:
    """Of that width and depth, over the tokenizer's words."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        # Measured on a sketch, loss after 400 steps: 0.97 at the usual 0.02, below 0.01 at 0.06.
        initializer_range=0.06,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def example(lm: LM, asked: Asked, image: str | None = None) -> train.Example:
    """Its token ids, beside a picture if there is one; the loss begins after the opening that is given."""
    drive = lm.drive
    lm.drive = Drive(template=asked.template, system=asked.system)
    ids, start = lm.encode(Shown(asked.text, image) if image else asked.text, asked.answer)
    lm.drive = drive
    return train.Example(ids, start + len(asked.opened.split()), image)


def fit(lm: LM, work: Sequence[Lesson], steps: int, batch: int, rate: float, seed: int) -> float:
    """Train whatever is not frozen; returns the last loss."""
    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = train.make_schedule(optimizer, "cosine", steps // 20, steps)

    def batches() -> Iterator[train.Batch]:
        for chosen in train.order(len(work), batch, steps, seed):
            some = [example(lm, *work[number]) for number in chosen]
            with lm.eyes.left(lm.model, [one.image for one in some], lm.drive, [None] * batch):
                yield train.collate(lm, some)

    return train.fit(lm, batches(), optimizer, schedule)
