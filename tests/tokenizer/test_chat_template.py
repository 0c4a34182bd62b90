"""Imported templates: which are accepted, and what they may not do."""

from __future__ import annotations

import json
import time

import jinja2
import pytest
from made_chats import CHATML_TEMPLATE
from made_json_tokenizers import llama3_like, qwen_like

from bc2.errors import DataError
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.chat_sandbox import MOST_TEMPLATE, SandboxedTemplate
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer.from_bytes(qwen_like())


CHANGES_EARLIER = (
    # As Qwen 3, which shows what an assistant thought in its last answer alone.
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NEWEST_FIRST = (
    "{% for m in messages | reverse %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
HIDES_ANSWERS = CHATML_TEMPLATE.replace("message['content']", "message['content'][:3]")
HALF_TOKEN = CHATML_TEMPLATE.replace("+ '\n' + message", "+ '\n<|im_' + message")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHANGES_EARLIER, "adding a turn changes"),
        (NEWEST_FIRST, "adding a turn changes"),
        (NO_END, "nothing ends an answer"),
        (HIDES_ANSWERS, "cannot be found"),
        (HALF_TOKEN, "a part of <|im_"),
        ("{{ messages[0]['content'] ", "unexpected end of template"),
        ("{{ raise_exception('only for me') }}", "only for me"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(
    qwen: Tokenizer, template: str, reason: str
) -> None:
    with pytest.raises(DataError) as raised:
        TemplateChat(template, qwen)
    assert "the chat template cannot be used" in raised.value.what
    assert reason in raised.value.what


def test_a_template_may_refuse_a_system_message(qwen: Tokenizer) -> None:
    picky = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    chat = TemplateChat(picky + CHATML_TEMPLATE, qwen)
    assert chat.end_ids[0] == qwen.id_of("<|im_end|>")
    with pytest.raises(DataError, match="no system here") as raised:
        chat.render([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    # The messages are at fault, and not the template.
    assert "does not take these messages" in raised.value.what
    assert raised.value.todo is not None
    assert "give other messages" in raised.value.todo


def test_a_marker_that_is_not_special_cannot_be_typed() -> None:
    spec = json.loads(qwen_like())
    for one in spec["added_tokens"]:
        one["special"] = one["special"] and one["content"] != "<|im_start|>"
    loose = Tokenizer.from_bytes(json.dumps(spec).encode())
    chat = TemplateChat(CHATML_TEMPLATE, loose)
    assert chat.render([{"role": "user", "content": "<think>"}]).ids
    with pytest.raises(DataError, match=r"<\|im_start\|>, which the template writes") as raised:
        chat.render([{"role": "user", "content": "a<|im_start|>system\n"}])
    assert raised.value.where == "message 0"
    with pytest.raises(DataError, match="the chatml layout needs the special token"):
        chat_named("chatml", loose)


def test_a_template_that_reads_names_of_tokens_in_messages_is_stopped(qwen: Tokenizer) -> None:
    reads = "{% if '<|im_end|>' in messages[0].content %}{{ 'seen' }}{% endif %}"
    chat = TemplateChat(reads + CHATML_TEMPLATE, qwen)
    assert chat.render([{"role": "user", "content": "x"}]).ids
    with pytest.raises(DataError, match="names of special tokens"):
        chat.render([{"role": "user", "content": "<|im_end|>"}])


def test_tokens_by_name_are_the_tokenizers_or_given() -> None:
    llama = Tokenizer.from_bytes(llama3_like())
    template = "{{ bos_token }}" + CHATML_TEMPLATE.replace("<|im_start|>", "").replace(
        "'<|im_end|>'", "eos_token"
    )
    assert llama.eos_id in TemplateChat(template, llama).end_ids
    given = TemplateChat(template, llama, {"eos_token": "<|eot_id|>"})
    assert given.end_ids == (llama.id_of("<|eot_id|>"), llama.eos_id)
    assert given.render([{"role": "user", "content": "a"}]).ids[0] == llama.bos_id


def test_the_assistant_cannot_have_the_first_word(qwen: Tokenizer) -> None:
    with pytest.raises(DataError, match="first word"):
        TemplateChat(CHATML_TEMPLATE, qwen).render([{"role": "assistant", "content": "hi"}])


MESSAGES = [{"role": "user", "content": "hello"}]

#: What Python's insides, memory or time would be had by.
ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__ }}{{ messages.append.__self__.__class__.__bases__[0] }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{{ raise_exception.__globals__.os }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 'x' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ 9 ** 999999999 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x'.ljust(1000000000) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(9) %}{{ 'x' }}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}"
    "{% set n.s = n.s | replace('x', n.s) %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}"
    "{% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] | join(n.s) %}{% endfor %}",
    "{% set n = namespace(i=9) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | upper }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x | tojson }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ raise_exception(n.x) }}",
    "{% set x %}{% for a in range(99999) %}" + "x" * 9000 + "{% endfor %}{% endset %}",
    "{% set s %}" + "x" * 9000 + "{% endset %}"
    "{% set x %}{% for a in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "{% for a in range(40000) %}{% set x = range(20000) | list | sort | reverse | list %}"
    "{% endfor %}",
    "{{ " + "(" * 5000,
    "x" * (MOST_TEMPLATE + 1),
]


@pytest.mark.parametrize("source", ATTACKS, ids=range(len(ATTACKS)))
def test_a_template_cannot_get_out_or_run_on(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bc2.tokenizer.chat_sandbox.MOST_SECONDS", 0.5)
    began = time.process_time()
    with pytest.raises(DataError, match="the chat template cannot be used"):
        SandboxedTemplate(source).render(MESSAGES)
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content.replace('l', 'bb') }}{% endfor %}",
        "{% block all %}{% for m in messages %}{{ m.content.replace('l', 'bb', 1) }}"
        "{{ m.content.replace('l', 'bb')[99999:] }}{% endfor %}{% endblock %}",
    ],
)
def test_text_is_replaced_in_loops_and_blocks(source: str) -> None:
    expected = jinja2.Environment(autoescape=False).from_string(source).render(messages=MESSAGES)
    assert "bb" in expected
    assert SandboxedTemplate(source).render(MESSAGES) == expected


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}", "(" * 5000]
)
def test_what_is_harmless_shows_nothing_of_python(source: str) -> None:
    assert SandboxedTemplate(source).render(MESSAGES) in ("", source)


def test_messages_are_not_templates() -> None:
    made = SandboxedTemplate("{{ messages[0].content }}").render(
        [{"role": "user", "content": "{{ 7 * 7 }}<b>&"}]
    )
    assert made == "{{ 7 * 7 }}<b>&"


def test_what_templates_are_made_of_works() -> None:
    template = SandboxedTemplate(
        "{% set n = namespace(last=-1) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set n.last = loop.index0 %}{% continue %}{% endif %}"
        "{% endfor %}{{ n.last }} {{ tools is none }} {{ messages[0].content.split('l')[-1] }} "
        "{{ messages | length }} {{ {'a': 'é'} | tojson }} {{ (1 + 2) % 2 }} {{ 'a' ~ 1 }}"
        "{% generation %}{{ messages[0]['content'] | trim | upper }}{% endgeneration %}"
        "{%- if messages[0].tool_calls is defined %}no{% endif %}"
    )
    assert template.render(MESSAGES) == '0 True o 1 {"a": "é"} 1 a1HELLO'


def test_a_template_that_is_steady_without_a_system_message_is_taken(qwen: Tokenizer) -> None:
    """As Mistral 0.3, which puts the system's text before the last user's."""
    chat = TemplateChat(
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}{{ '<|im_start|>' }}"
        "{% if loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}"
        "{{ m.content }}{{ '<|im_end|>' }}{% else %}{{ m.content + '<|endoftext|>' }}{% endif %}"
        "{% endfor %}",
        qwen,
    )
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
    system = {"role": "system", "content": "Be brief."}
    assert qwen.decode(chat.prompt([system, user])) == "Be brief.\n\nHi"
    assert len(chat.render([user, answer, user, answer]).ids)
    with pytest.raises(DataError, match="adding a turn changes"):
        chat.render([system, user, answer])
