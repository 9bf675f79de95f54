"""Protects the server for agents: the official client lists and calls its tools, and reads no other folder."""

import asyncio
import sys
from pathlib import Path

import pytest
from live import PATIENCE, run_async

from videopanda.inference.answer import ask
from videopanda.inference.find import find
from videopanda.inference.load import BUNDLED_MODEL, load

mcp = pytest.importorskip("mcp", reason="no mcp: pip install 'videopanda[mcp]'")

CLIP = BUNDLED_MODEL.parent / "demo.mp4"
QUESTION, EVENT = "Which colour does the circle become?", "the circle turns white"


def test_the_official_client_uses_every_tool(tmp_path):
    from mcp.client.session import ClientSession
    from mcp.client.stdio import StdioServerParameters, stdio_client

    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    (tmp_path / "link.mp4").symlink_to(CLIP)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "frame.png").symlink_to(Path(__file__).parents[2] / "docs/images/demo.png")
    command = ["-m", "videopanda", "mcp", "--media-root", str(tmp_path)]

    async def use():
        server = StdioServerParameters(command=sys.executable, args=command)
        async with stdio_client(server) as streams, ClientSession(*streams) as session:
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]

            async def call(name, **arguments):
                return await session.call_tool(name, {"path": "clip.mp4", **arguments})

            answer = await call("ask", question=QUESTION)
            moment = await call("analyze_moment", question=QUESTION, start=0.0, end=1.0)
            described, shown = await call("describe"), await call("frames", count=4)
            found = await call("find", description=EVENT)
            outside = await session.call_tool("ask", {"path": str(CLIP), "question": QUESTION})
            linked = await session.call_tool("ask", {"path": "link.mp4", "question": QUESTION})
            pictures = await session.call_tool("frames", {"path": "pictures"})
            return names, answer, moment, described, shown, found, (outside, linked, pictures)

    names, answer, moment, described, shown, found, refusals = run_async(asyncio.wait_for(use(), PATIENCE))
    assert names == ["describe", "ask", "analyze_moment", "find", "frames"]
    expected = ask(*load(None, "cpu"), CLIP, [QUESTION])[0]
    assert answer.structured_content["answer"] == expected.answer
    assert max(moment.structured_content["frame_times"]) < 1
    assert described.structured_content["duration"] == pytest.approx(4.0, abs=0.1)
    assert shown.content[0].type == "image"
    intervals = find(CLIP, EVENT, model=load(None, "cpu")).intervals
    assert [one["start"] for one in found.structured_content["intervals"]] == [one.start for one in intervals]
    for refused in refusals:
        assert refused.is_error
        assert "no video" in refused.content[0].text
