"""The client of servers that speak the OpenAI protocol."""

from typing import Any


def openai_client(base_url: str | None, timeout: float, retries: int) -> Any:
    """A client that tries again, with exponential backoff or when the server says, where it is busy, broken or slow.

    Args:
        base_url: of the server; None is that of OpenAI. The key is that of OPENAI_API_KEY; a server of one's own needs
            none.

    Raises:
        ValueError: the package is not installed, or the key is missing.
    """
    try:
        import openai
    except ImportError as error:
        raise ValueError("this needs the OpenAI client: pip install 'videopanda[eval]'") from error
    given: dict[str, Any] = {"base_url": base_url, "timeout": timeout, "max_retries": retries}
    try:
        return openai.OpenAI(**given)
    except openai.OpenAIError as error:
        if base_url is None:
            raise ValueError("set OPENAI_API_KEY, or pass a server with --base-url") from error
        return openai.OpenAI(**given, api_key="none")
