"""Chat templates for the tests of tools, which render what the published ones of Llama 3.1, Llama 3.2 and Qwen2.5 render.

Only what conversations with tools of :mod:`cycleqd_jax.tool_calls` reach is here: no built-in tools and no options.
"""

from __future__ import annotations

_HEAD = "{% macro head(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}{% endmacro %}"
_LLAMA = (
    _HEAD + "{{ bos_token }}{% set first = 0 %}{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set first = 1 %}{% set system = messages[0].content | trim %}{% endif %}"
    "{{ head('system') }}{% if tools is defined and tools is not none %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' ~ (DATE) ~ '\n\n' ~ system ~ '<|eot_id|>' }}"
    "{% if tools is defined and tools is not none %}{{ head('user') }}"
    "{{ 'Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name '
    "and its value}.Do not use variables.\n\n' }}{% for tool in tools %}{{ tool | tojson(indent=4) ~ '\n\n' }}{% endfor %}"
    "{% if messages | length == first %}{{ raise_exception('no first user message') }}{% endif %}"
    "{{ messages[first].content | trim ~ '<|eot_id|>' }}{% set first = first + 1 %}{% endif %}"
    "{% for message in messages[first:] %}{% if 'tool_calls' in message %}"
    "{% if message.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls at once') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}{{ head('assistant') }}"
    "{{ '{\"name\": \"' ~ call.name ~ '\", \"parameters\": ' ~ call.arguments | tojson ~ '}' }}"
    "{% elif message.role == 'tool' %}{{ head('ipython') ~ message.content | tojson }}"
    "{% else %}{{ head(message.role) ~ message.content | trim }}{% endif %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
)
LLAMA31 = _LLAMA.replace("DATE", "'26 Jul 2024'")
LLAMA32 = _LLAMA.replace("DATE", "strftime_now('%d %b %Y')")

QWEN25 = (
    "{% set system = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}{% set first = 0 %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set first = 1 %}{% endif %}"
    "{{ '<|im_start|>system\n' ~ system }}{% if tools %}{{ '\n\n# Tools\n\nYou may call one or more functions to assist with "
    "the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' ~ tool | tojson }}{% endfor %}{{ '\n</tools>\n\nFor each function call, return a json "
    'object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
    "\"arguments\": <args-json-object>}\n</tool_call>' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for message in messages[first:] %}"
    "{% if message.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' ~ message.content ~ '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif message.tool_calls %}{{ '<|im_start|>assistant' ~ ('\n' ~ message.content if message.content else '') }}"
    '{% for call in message.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' ~ '
    "call.function.arguments | tojson ~ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
