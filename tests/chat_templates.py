"""Chat templates in the layouts of the field, as language models bring them."""

# SmolLM, SmolLM2.
CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# Qwen2.5: with a system turn of its own where none is given.
QWEN25 = (
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif -%}"
    + CHATML
)
# Qwen3: the answers after the last question have a thought, an empty one if there is none; earlier ones have none.
QWEN3 = (
    "{%- set last = namespace(user=0) -%}"
    "{%- for message in messages if message.role == 'user' -%}{%- set last.user = last.user + 1 -%}{%- endfor -%}"
    "{%- set at = namespace(user=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' -%}{%- set at.user = at.user + 1 -%}{%- endif -%}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and at.user == last.user -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{{ message.content | trim + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
# Qwen3.5: the same, but a thought is opened unless it is switched off.
QWEN35 = QWEN3.replace(
    "\n\n</think>\n\n' }}{%- endif -%}{%- endif -%}",
    "\n\n</think>\n\n' }}{%- else -%}{{ '<think>\n' }}{%- endif -%}{%- endif -%}",
)
# SmolLM3: a switch of its own that is on unless it is set; without thoughts all answers have an empty one.
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{%- set thought = '' if enable_thinking else '<think>\n\n</think>\n' -%}"
    "{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\nReasoning Mode: ' + ('/think' if enable_thinking "
    "else '/no_think') + '<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' + (thought if message.role == 'assistant' "
    "else '') + message.content + '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' + thought }}{%- endif -%}"
)
# Phi-4: as ChatML, on one line.
PHI4 = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant<|im_sep|>' }}{%- endif -%}"
)
# LFM2 and LFM3.
LFM = "{{ bos_token }}" + CHATML
# Llama 3.
LLAMA3 = (
    "{{ bos_token }}{%- for message in messages -%}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + "
    "message.content | trim + '<|eot_id|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
)
# Gemma 2 and 3: the system text opens the first question (Gemma 2 refuses it); the model is called "model".
GEMMA3 = (
    "{{ bos_token }}{%- set system = '' -%}"
    "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content + '\n\n' -%}"
    "{%- set messages = messages[1:] -%}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + "
    "(system if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
# Gemma 4: a system turn, which also asks for thoughts if they are switched on.
GEMMA4 = (
    "{{ bos_token }}"
    "{%- if (enable_thinking is defined and enable_thinking) or messages[0].role == 'system' -%}"
    "{{ '<|turn>system\n' }}{%- if enable_thinking is defined and enable_thinking -%}{{ '<|think|>\n' }}{%- endif -%}"
    "{%- if messages[0].role == 'system' -%}{{ messages[0].content | trim }}{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
    "{{ '<turn|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + message.content | trim + "
    "'<turn|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"
)
# Llama 2, Mistral.
INST = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ raise_exception('only user and assistant') }}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + message['content'].strip() + eos_token }}{%- endif -%}{%- endfor -%}"
)
# Llama 2 with its system prompt; Mistral's first template refuses one.
LLAMA2 = (
    "{%- set system = '' -%}{%- if messages[0].role == 'system' -%}"
    "{%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' -%}{%- set messages = messages[1:] -%}"
    "{%- endif -%}"
) + INST.replace(
    "message['content'].strip() + ' [/INST]'",
    "(system if loop.first else '') + message['content'].strip() + ' [/INST]'",
)
# Phi-3.
BARS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
