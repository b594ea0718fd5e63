"""The same small tokenizers in transformers: the same ids for text and for conversations."""

import pytest
import small_tokenizers as small

transformers = pytest.importorskip("transformers")

from bitnet.tokenizer import ChatTemplate, Tokenizer
from bitnet.tokenizer.chat import BITNET

TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama-3": "{{ bos_token }}{% for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-2": "{% for m in messages %}{% if m.role == 'system' %}{{ '<s>[INST] <<SYS>>\n' + m.content + '\n<</SYS>>' }}"
    "{% else %}{{ '<s>[INST] ' + m.content + ' [/INST] ' + eos_token }}{% endif %}{% endfor %}",
    "bitnet": "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}",
}


@pytest.fixture(params=small.KINDS)
def both(request, tmp_path):
    """(transformers' tokenizer, ours) from one folder."""
    build, config = small.KINDS[request.param]
    folder = small.save(build(), tmp_path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder), Tokenizer.from_folder(folder)


@pytest.mark.parametrize("text", [*small.CORPUS[:7], "", " ", "a <|eot_id|> b</s><s>", "<|im_end|>"])
def test_encode_gives_the_ids_of_transformers(both, text):
    theirs, ours = both
    assert ours.encode(text, parse_special=True) == theirs(text)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_conversations_give_the_ids_of_transformers(both, name, add_generation_prompt):
    theirs, ours = both
    messages = [
        *small.PROMPT,
        {"role": "assistant", "content": "Größe 世界 🦊"},
        {"role": "user", "content": "12345\n\n"},
    ]
    options = {"chat_template": TEMPLATES[name], "add_generation_prompt": add_generation_prompt}
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    template = ChatTemplate(TEMPLATES[name])
    assert template.apply(messages, ours, add_generation_prompt=add_generation_prompt) == expected


def test_our_template_for_bitnet_is_the_one_of_its_hugging_face_folder(both):
    theirs, ours = both
    if ours.id_of("<|eot_id|>") is None:
        pytest.skip("no <|eot_id|> in this vocabulary")
    expected = theirs.apply_chat_template(
        small.PROMPT, chat_template=TEMPLATES["bitnet"], add_generation_prompt=True, return_dict=False
    )
    assert ChatTemplate(BITNET, "bitnet-b1.58").apply(small.PROMPT, ours) == expected
