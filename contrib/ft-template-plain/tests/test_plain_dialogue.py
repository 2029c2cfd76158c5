"""What the template renders, and what of it is trained."""

from ft_template_plain import ft_chat_templates

from ftcore.testing import tiny_tokenizer

TEMPLATE = ft_chat_templates()[0]
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "world"},
]


def test_renders_the_conversation() -> None:
    text = tiny_tokenizer().apply_chat_template(CHAT, chat_template=TEMPLATE.source(), tokenize=False)
    assert text == "### System:\nbe brief\n\n### User:\nhello\n\n### Assistant:\nworld<|im_end|>\n\n"


def test_prompt_is_the_beginning_of_the_conversation() -> None:
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.apply_chat_template(
        CHAT[:2], chat_template=TEMPLATE.source(), tokenize=False, add_generation_prompt=True
    )
    assert prompt == "### System:\nbe brief\n\n### User:\nhello\n\n### Assistant:\n"


def test_the_answer_and_its_end_are_trained() -> None:
    tokenizer = tiny_tokenizer()
    rows = tokenizer.apply_chat_template(
        CHAT, chat_template=TEMPLATE.source(), return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [token for token, mask in zip(rows["input_ids"], rows["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(trained) == "world<|im_end|>"
