"""For plugin authors and our own tests: tiny models made on the spot, and a run in memory.

Nothing here downloads. The tiny model is random: losses are exact numbers, answers are nonsense.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CORPUS = (
    "the quick brown fox jumps over the lazy dog. what is your name? my name is a tiny model.",
    "system user assistant tool question answer hello world one two three four five six seven",
    "你好,世界。你叫什么名字?我是一个很小的模型。",
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(special_tokens: tuple[str, ...] = SPECIAL_TOKENS, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that reads any text; the last special token ends a turn, the first one pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special_tokens[0],
        eos_token=special_tokens[-1],
        additional_special_tokens=list(special_tokens[1:-1]),
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(folder: Path | str, *, seed: int = 0, tokenizer: Any = None, **config: Any) -> Path:
    """Saves a random two-layer Llama of about 100,000 parameters, with its tokenizer, and returns the folder.

    Args:
        folder: made if it does not exist.
        seed: of the weights.
        tokenizer: instead of `tiny_tokenizer`.
        config: overrides of LlamaConfig's fields.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = tokenizer or tiny_tokenizer()
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(fields | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
