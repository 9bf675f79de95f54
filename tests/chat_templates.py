"""Chat templates in the layouts of the field, as language models bring them."""

# Qwen, SmolLM.
CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# Llama 2, Mistral.
INST = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ raise_exception('only user and assistant') }}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + message['content'].strip() + eos_token }}{%- endif -%}{%- endfor -%}"
)
# Phi-3.
BARS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
