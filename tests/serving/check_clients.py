"""Client libraries, unmodified, get the library's answers from a live server. `make test-clients` runs this.

The clip is the bundled one and the question that of the README. Each client passes the clip in a way of its own;
what a client or the server cannot do ends in a clear refusal.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import instructor
import openai
import pytest
from instructor.core import InstructorRetryException
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from live import PATIENCE, run_async
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, UploadedFile
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from test_api import DEMO, data_url, file, video

import videopanda

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read on import: otherwise it asks GitHub for prices
import litellm

pytestmark = pytest.mark.timeout(600)  # a server has to start
QUESTION = "Could you tell me what color the red thing turns into?"
KEY = "none"
JS = Path(__file__).parent / "js"


class Color(BaseModel):
    """What a client with structured output asks for."""

    color: Literal["blue", "green", "red", "white", "yellow"]


@pytest.fixture(scope="module")
def url(server):
    return f"{server.url}/v1"


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key=KEY, timeout=PATIENCE, max_retries=0)


@pytest.fixture(scope="module")
def uploaded(client):
    return client.files.create(file=DEMO, purpose="user_data")


@pytest.fixture(scope="module")
def wanted():
    """The library's answer, which the model does not give without the clip."""
    answer = str(videopanda.answer(DEMO, QUESTION))
    assert answer
    return answer


def turn(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]


def test_the_answer_needs_the_clip(client, wanted):
    reply = client.chat.completions.create(model="nano", messages=[{"role": "user", "content": QUESTION}])
    assert reply.choices[0].message.content != wanted


# -- openai ------------------------------------------------------------------------------------------------------------
def test_openai(client, uploaded, wanted):
    for part in (video(data_url()), file(uploaded)):
        assert client.chat.completions.create(model="nano", messages=turn(part)).choices[0].message.content == wanted
        chunks = list(client.chat.completions.create(model="nano", messages=turn(part), stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
    with client.chat.completions.stream(model="nano", messages=turn(file(uploaded))) as stream:
        assert stream.get_final_completion().choices[0].message.content == wanted
    parts = [{"type": "input_file", "file_id": uploaded.id}, {"type": "input_text", "text": QUESTION}]
    assert client.responses.create(model="nano", input=[{"role": "user", "content": parts}]).output_text == wanted


def test_openai_asynchronously(url, wanted):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=PATIENCE, max_retries=0) as client:
            return await client.chat.completions.create(model="nano", messages=turn(video(data_url())))

    assert run_async(ask()).choices[0].message.content == wanted


def test_openai_parses_structured_output(client, uploaded):
    """Chat and responses, whole and streamed: one greedy reply."""
    fields = {"model": "nano", "messages": turn(file(uploaded)), "response_format": Color}
    whole = client.chat.completions.parse(**fields).choices[0].message
    assert isinstance(whole.parsed, Color)
    with client.chat.completions.stream(**fields) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == whole.parsed
    parts = [{"type": "input_file", "file_id": uploaded.id}, {"type": "input_text", "text": QUESTION}]
    asked = {"model": "nano", "input": [{"role": "user", "content": parts}], "text_format": Color}
    assert client.responses.parse(**asked).output_parsed == whole.parsed
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_parsed == whole.parsed


# -- LiteLLM -----------------------------------------------------------------------------------------------------------
def litellm_ask(url, part, **fields):
    return litellm.completion(
        "openai/nano", turn(part), api_base=url, api_key=KEY, timeout=PATIENCE, num_retries=0, **fields
    )


def test_litellm(url, uploaded, wanted):
    for part in (video(data_url()), file(uploaded)):
        reply = litellm_ask(url, part)
        assert reply.choices[0].message.content == wanted
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        chunks = list(litellm_ask(url, part, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == wanted
        assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens
    Color.model_validate_json(litellm_ask(url, video(data_url()), response_format=Color).choices[0].message.content)
    with pytest.raises(litellm.ContextWindowExceededError):  # for which it has fallbacks
        litellm_ask(url, {"type": "text", "text": "word " * 3000})


# -- LangChain ---------------------------------------------------------------------------------------------------------
def test_langchain(url, uploaded, wanted):
    model = ChatOpenAI(model="nano", base_url=url, api_key=KEY, timeout=PATIENCE, max_retries=0)
    data = data_url().partition(",")[2]
    for part in (
        video(data_url()),
        {"type": "file", "base64": data, "mime_type": "video/mp4", "filename": "demo.mp4"},  # LangChain's own
        {"type": "file", "file_id": uploaded.id},
    ):
        message = HumanMessage([part, {"type": "text", "text": QUESTION}])
        reply = model.invoke([message])
        assert reply.content == wanted
        assert reply.usage_metadata["output_tokens"] > 0
        assert "".join(chunk.content for chunk in model.stream([message])) == wanted
    again = [message, reply, HumanMessage(QUESTION)]  # a reply comes back as part of the conversation
    assert model.invoke(again).content
    assert isinstance(model.with_structured_output(Color).invoke([message]), Color)


def test_langchain_with_responses(url, uploaded, wanted):
    model = ChatOpenAI(model="nano", base_url=url, api_key=KEY, timeout=PATIENCE, max_retries=0, use_responses_api=True)
    message = HumanMessage([{"type": "file", "file_id": uploaded.id}, {"type": "text", "text": QUESTION}])
    reply = model.invoke([message])
    assert reply.text == wanted
    assert "".join(chunk.text for chunk in model.stream([message])) == wanted
    assert model.invoke([message, reply, HumanMessage(QUESTION)]).text
    assert isinstance(model.with_structured_output(Color).invoke([message]), Color)
    with pytest.raises(openai.BadRequestError, match="responses are not stored: send the whole conversation"):
        model.bind(previous_response_id=reply.response_metadata["id"]).invoke(QUESTION)


# -- llm ---------------------------------------------------------------------------------------------------------------
def test_llm(url, wanted, tmp_path):
    """It knows pictures and PDF files only: with the type of the second the file is sent as it is."""
    model = {"model_id": "nano", "model_name": "nano", "api_base": url, "vision": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))

    def run(*words):
        command = [sys.executable, "-m", "llm", "-m", "nano", *words, QUESTION]
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    for options in ([], ["--no-stream"]):
        done = run("--at", str(DEMO), "application/pdf", *options)
        assert (done.stdout.strip(), done.returncode) == (wanted, 0), done.stderr
    refused = run("--at", str(DEMO), "image/png")
    assert refused.returncode == 1
    assert "image_url holds a video: send it as video_url" in refused.stderr


# -- pydantic-ai -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
def test_pydantic_ai(url, uploaded, wanted, kind):
    """Its models for OpenAI take a video as an uploaded file."""

    async def use():
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=PATIENCE, max_retries=0) as client:
            model = kind("nano", provider=OpenAIProvider(openai_client=client))
            clip = UploadedFile(uploaded.id, provider_name=model.system, media_type="video/mp4")
            whole = await Agent(model).run([clip, QUESTION])
            async with Agent(model).run_stream([clip, QUESTION]) as stream:
                streamed = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
            with pytest.raises(NotImplementedError, match="ideo"):  # the client's own limit
                await Agent(model).run([BinaryContent(DEMO.read_bytes(), media_type="video/mp4"), QUESTION])
            typed = await Agent(model, output_type=NativeOutput(Color)).run([clip, QUESTION])
            assert isinstance(typed.output, Color)
            with pytest.raises(ModelHTTPError, match="tools: tool calling is not supported"):
                await Agent(model, output_type=Color).run([clip, QUESTION])
            return whole.output, "".join(streamed), whole.usage.output_tokens

    text, streamed, tokens = run_async(asyncio.wait_for(use(), PATIENCE))
    assert (text, streamed) == (wanted, wanted)
    assert tokens > 0


# -- instructor --------------------------------------------------------------------------------------------------------
def test_instructor(client, uploaded, wanted):
    """A schema is kept without a retry. The mode `JSON` asks for any object: its fields are up to the model."""

    class Perhaps(BaseModel):
        color: str | None = None

    for mode, model in ((instructor.Mode.JSON_SCHEMA, Color), (instructor.Mode.JSON, Perhaps)):
        asking = instructor.from_openai(client, mode=mode).chat.completions
        plain = asking.create(model="nano", messages=turn(file(uploaded)), response_model=None)
        assert plain.choices[0].message.content == wanted
        fields = {"model": "nano", "messages": turn(file(uploaded)), "response_model": model, "max_retries": 0}
        assert isinstance(asking.create(**fields), model)
    asking = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA).chat.completions
    fields = {"model": "nano", "messages": turn(video(data_url())), "response_model": Color, "max_retries": 0}
    *_, last = asking.create_partial(**fields)
    assert Color.model_validate(last.model_dump()).color == asking.create(**fields).color


def test_instructor_is_refused_tools(client):
    asking = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions
    with pytest.raises(InstructorRetryException, match="tools: tool calling is not supported") as caught:
        asking.create(model="nano", messages=turn(video(data_url())), response_model=Color, max_retries=0)
    assert "400" in str(caught.value)


# -- JavaScript --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["openai", "ai"])
def test_javascript(server, wanted, name):
    """The tests are in `js/`; node's own runner prints them."""
    if not (JS / "node_modules").exists():
        pytest.skip("no JavaScript clients: npm ci --prefix tests/serving/js")
    command = ["node", JS / f"{name}.test.js", server.url, DEMO, QUESTION, wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
