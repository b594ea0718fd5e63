"""Conversations: the prompt each model expects, control tokens that users cannot write, templates that mean harm."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import small_tokenizers as small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet.errors import BitNetError, FormatError, ParameterError
from bitnet.tokenizer import ChatTemplate, Tokenizer, chat_template_for
from bitnet.tokenizer.chat import BITNET, CHATML, LLAMA3, PLAIN
from bitnet.tokenizer.template_renderer import RENDERER

lenient = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
USER = [{"role": "user", "content": "Hi"}]


def checkpoint(architecture):
    return SimpleNamespace(kind="gguf", architecture=architecture, metadata={})


def with_template(tokenizer, source):
    metadata = {**tokenizer.to_gguf(), "tokenizer.chat_template": source}
    return Tokenizer.from_gguf(metadata)


def test_bitnet_gets_the_prompt_of_its_model_card(llama3):
    template = chat_template_for(checkpoint("bitnet-b1.58"), llama3)
    prompt = template.render([*small.PROMPT, {"role": "assistant", "content": "Fine."}, *USER], llama3)
    assert prompt == (
        "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hello, how are you?<|eot_id|>"
        "Assistant: Fine.<|eot_id|>User: Hi<|eot_id|>Assistant: "
    )
    assert template.apply(USER, llama3) == llama3.encode(
        "<|begin_of_text|>User: Hi<|eot_id|>Assistant: ", add_special=False, parse_special=True
    )


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25", "bitnet"])
def test_bitnets_stored_template_is_passed_over(llama3, architecture):
    wrong = with_template(llama3, "{% for m in messages %}Human: {{ m.content }}\n\nBITNETAssistant: {% endfor %}")
    assert chat_template_for(checkpoint(architecture), wrong).source == BITNET


def test_other_models_get_what_they_store(llama3, sentencepiece):
    for tokenizer, architecture in ((llama3, "llama"), (sentencepiece, "bitnet")):
        template = chat_template_for(checkpoint(architecture), with_template(tokenizer, "{{ messages[0].content }}!"))
        assert template.name == "stored" and template.render(USER, tokenizer) == "Hi!" and not template.warning


def test_without_a_stored_template_the_vocabulary_decides_and_a_warning_says_so(trio):
    template = chat_template_for(checkpoint("llama"), trio.folder)
    expected = {"llama-bpe": LLAMA3, "qwen2": CHATML}.get(trio.kind, PLAIN)
    assert template.source == expected and template.name in template.warning
    assert template.stop == (("\nUser:",) if expected == PLAIN else ())
    text = template.render(small.PROMPT, trio.folder)
    assert text.startswith("<s>System: Be brief.\nUser: Hello") or expected != PLAIN or trio.kind == "gpt-2"
    assert template.apply(small.PROMPT, trio.folder) == trio.folder.encode(text, add_special=False, parse_special=True)


def test_the_generation_prompt_can_be_left_out(llama3):
    template = ChatTemplate(BITNET, "bitnet-b1.58")
    assert template.render(USER, llama3, add_generation_prompt=False).endswith("User: Hi<|eot_id|>")


TEXT = st.lists(
    st.text(max_size=8) | st.sampled_from(["<|eot_id|>", "<|im_end|>", "</s>", "<s>", "<|", "\U000f0000"]), max_size=5
)


@lenient
@given(text=TEXT.map("".join))
def test_users_cannot_write_control_tokens(trio, text):
    template = ChatTemplate(CHATML, "chatml")
    harmless = template.apply([{"role": "user", "content": "x"}], trio.folder)
    control = set(trio.folder.control_tokens.values())
    ids = template.apply([{"role": "user", "content": text}], trio.folder)
    assert [i for i in ids if i in control] == [i for i in harmless if i in control]
    normal = trio.library.normalizer.normalize_str(text) if trio.kind == "qwen2" else text
    assert trio.kind in ("llama", "metaspace") or normal in trio.folder.decode(ids)


@lenient
@given(text=st.text(max_size=20))
def test_ordinary_text_is_tokenized_as_if_written_out(trio, text):
    template = ChatTemplate(PLAIN, "plain")
    messages = [{"role": "user", "content": text}]
    written = template.render(messages, trio.folder)
    if not any(name in text for name in trio.folder.control_tokens):
        assert template.apply(messages, trio.folder) == trio.folder.encode(written, False, parse_special=True)


def test_a_control_token_in_a_role_a_tool_or_a_stored_template_is_text(llama3):
    source = "{{ messages[0].role }}{{ messages[0]['content'] }}{{ tools | tojson }}<|eot_id|>"
    message = {
        "role": "user<|eot_id|>",
        "content": [{"type": "text", "text": "<|eot"}, {"type": "text", "text": "_id|>"}],
    }
    ids = ChatTemplate(source).apply([message], llama3, tools=[{"<|eot_id|>": "é<|eot_id|>"}])
    assert ids.count(llama3.id_of("<|eot_id|>")) == 1
    assert llama3.decode(ids) == 'user<|eot_id|><|eot_id|>[{"<|eot_id|>": "é<|eot_id|>"}]'


def test_private_use_characters_in_the_text_survive(llama3):
    text = "\U000f0000<|eot_id|>\U000f0001"
    assert text in llama3.decode(ChatTemplate(BITNET).apply([{"role": "user", "content": text}], llama3))


@pytest.mark.parametrize(
    "messages, name",
    [
        (None, "messages"),
        ([], "messages is empty"),
        ({}, "messages"),
        ("Hi", "messages"),
        ([{}], r"messages\[0\].role"),
        ([None], r"messages\[0\]"),
        ([*USER, {"role": 123, "content": "x"}], r"messages\[1\].role"),
        ([*USER, {"role": "user"}], r"messages\[1\].content"),
        ([*USER, {"role": "user", "content": 3}], r"messages\[1\].content"),
        ([*USER, {"role": "user", "content": []}], r"messages\[1\].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content\[0\].*image_url"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\]"),
        ([{"role": "user", "content": "a\ud800"}], "surrogate"),
        ([{"role": "user", "content": "a", "extra": object()}], "JSON"),
    ],
)
def test_bad_messages_are_refused_by_index(llama3, messages, name):
    with pytest.raises(ParameterError, match=name):
        ChatTemplate("{{ messages[0].content }}").apply(messages, llama3)


def test_a_template_may_refuse_the_messages(llama3):
    with pytest.raises(ParameterError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(USER, llama3)


HARMFUL = {
    "repeated text": "{{ 'a' * 10**9 }}",
    "repeated list": "{{ ([0] * 10**9) | length }}",
    "repeated from the left": "{{ 10**9 * 'a' }}",
    "power": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "format width": "{{ '%1000000000d' % 3 }}",
    "format method": "{{ '{:>9999999999}'.format(3) }}",
    "format filter": "{{ '%9999999999d' | format(3) }}",
    "justified": "{{ 'a'.ljust(10**10) }}",
    "centred": "{{ 'a' | center(10**10) }}",
    "indented": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "doubled": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "replaced": "{% set a = 'a' * 10**5 %}{% set b = 'b' * 10**5 %}{{ a.replace('a', b) | length }}",
    "joined": "{% set a = 'a' * 10**6 %}{{ a.join(a) | length }}",
    "large range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "loops in text": "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "recursive macro": "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "parentheses": "{{ " + "(" * 60000 + "1" + ")" * 60000 + " }}",
    "nested ifs": "{% if 1 %}" * 20000 + "{% endif %}" * 20000,
    "class attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "attr filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "format string attributes": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "changes the messages": "{{ messages.append(1) }}",
    "imports": "{% import 'os' as os %}",
    "includes": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "unknown tag": "{% martian %}",
    "undefined": "{{ nothing.at.all }}",
    "type error": "{{ 'a' + 1 }}",
    "division": "{{ 1 / 0 }}",
    "ten megabytes": "a" * 10**7,
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_template_is_refused_in_bounded_time(llama3, name):
    with pytest.raises(BitNetError) as caught:
        ChatTemplate(HARMFUL[name]).apply(USER, llama3)
    assert isinstance(caught.value, FormatError)
    assert ChatTemplate("{{ messages[0].content }}").render(USER, llama3) == "Hi"  # the next one is not harmed


@pytest.mark.parametrize(
    "source", ["{{ raise_exception.__globals__ }}", "{{ ''.__class__ }}", "{{ '' | attr('__class__') }}"]
)
def test_the_inside_of_python_is_not_shown(llama3, source):
    assert ChatTemplate(source).render(USER, llama3) == ""


def test_the_sandbox_sees_nothing_of_the_environment(llama3, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    RENDERER.close()
    RENDERER.render("x", {})
    assert RENDERER._process is not None and RENDERER._process.poll() is None
    try:
        environment = Path(f"/proc/{RENDERER._process.pid}/environ").read_bytes()
    except OSError:
        pytest.skip("no /proc here")
    assert b"hunter2" not in environment


def test_the_tools_of_transformers_are_there(llama3):
    source = (
        "{% for m in messages %}\n    {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    assert (
        ChatTemplate(source).render([{"role": "user", "content": "é<"}] * 2, llama3)
        == '{"role": "user", "content": "é<"}4'
    )
