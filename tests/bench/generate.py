"""The cost of writing a tip without the work of the model, compared with the usual ways to call a model.

    python -m tests.bench.generate [--seconds 20] [--rate 30] [--rounds 3] [--stream] [--proxy PATH/TO/litellm]

Everything runs on this machine, over the loopback interface: one OpenAI-compatible upstream that answers immediately,
and one process with one worker for each server that calls it:

- tips: `POST /generate` as in production, with keys, validation, prompts, retries, checks, logs (to a file) and
  metrics;
- (a) a FastAPI handler that calls `litellm.acompletion`; all ratios are relative to it;
- (b) a FastAPI handler that calls the OpenAI SDK;
- (c) LiteLLM's own proxy with a key, only with `--proxy`: its requirements conflict with those of this project (rich),
  so it needs a separate environment (`pip install 'litellm[proxy]' httptools`, of the version that pyproject.toml
  pins);
- the floor: a FastAPI handler that calls nothing.

All servers send the same messages to the upstream. With `--stream`, the model and all servers but the floor answer with
server-sent events, one for each word. open_loop.py describes how requests are sent and what is measured.
The servers are measured in alternation for several rounds; the printed figures are the medians of the rounds. An answer
that is not the tip ends the run.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ml.features.context import assemble_context
from ml.serving.prompts import PROMPTS
from tests.bench.figures import machine
from tests.bench.open_loop import Cost, measure_all, must_answer, session, table
from tests.bench.peers import TIP
from tests.bench.server import KEY, Running, Server, run, service, start_server, uvicorn, wait_until_working

SIGNALS = {"goal": "sleep better", "sleep_hours": 5.5, "local_time": "21:40"}
PROMPT_VERSION = "v2-mentor"
REFERENCE = "(a) FastAPI + LiteLLM SDK"

LITELLM = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def chat(*, stream: bool) -> dict[str, Any]:
    """Return the chat completion request that serving sends for the signals, for servers that receive it ready-made."""
    prompt = PROMPTS[PROMPT_VERSION]
    messages = prompt.render(assemble_context(SIGNALS)).messages
    return {"model": "tiny", "messages": messages, **asdict(prompt.parameters), **(STREAM if stream else {})}


def server_with_tip(
    name: str, command: list[str], path: str, body: Mapping[str, Any], environment: Mapping[str, str]
) -> Server:
    """Return a server whose correct answer contains the tip."""
    return Server(name, command, path, [json.dumps(body).encode()], has_tip, environment)


def has_tip(answer: bytes) -> bool:
    """Return whether an answer has the tip, whole or in the pieces of a stream."""
    streamed = b"".join(_PIECE.findall(answer))
    return TIP.encode() == streamed or json.dumps(TIP).encode() in answer


_PIECE = re.compile(rb'"(?:text|content)": ?"([^"]*)"')


def upstream() -> Server:
    options = ("--no-access-log", "--lifespan", "off", "--timeout-keep-alive", "600")
    return server_with_tip(
        "upstream", uvicorn("tests.bench.peers:upstream", *options), "/v1/chat/completions", chat(stream=False), {}
    )


def peer(name: str, factory: str, environment: Mapping[str, str], *, stream: bool) -> Server:
    command = uvicorn(f"tests.bench.peers:{factory}", "--factory", "--no-access-log")
    return server_with_tip(name, command, "/generate", chat(stream=stream), environment)


def servers(model: str, *, stream: bool = False) -> list[Server]:
    """Return the servers to measure; all except the floor call the `model` at that address."""
    sdk = {"OPENAI_BASE_URL": model, "OPENAI_API_KEY": "k"}
    tips_settings = {"TIP_MODEL": "openai/tiny", "TIP_MODEL_API_BASE": model, "OPENAI_API_KEY": "k", "API_KEYS": KEY}
    request = {"signals": SIGNALS, "prompt_version": PROMPT_VERSION, "stream": stream}
    return [
        peer("floor: FastAPI alone", "floor", {}, stream=False),
        peer("(b) FastAPI + OpenAI SDK", "openai_sdk", sdk, stream=stream),
        peer(REFERENCE, "litellm_sdk", sdk | LITELLM, stream=stream),
        server_with_tip("tips", service("ml.serving.main:app"), "/generate", request, tips_settings),
    ]


def litellm_proxy(executable: Path, model: str, directory: Path, *, stream: bool) -> Server:
    """Return LiteLLM's proxy, configured as its documentation recommends for production, without a database."""
    parameters = {"model": "openai/tiny", "api_base": model, "api_key": "k"}
    config = {
        "model_list": [{"model_name": "tiny", "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
    }
    path = directory / "proxy.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    environment = LITELLM | {"LITELLM_LOG": "ERROR"}
    command = [str(executable), "--config", str(path)]
    return server_with_tip("(c) LiteLLM proxy", command, "/v1/chat/completions", chat(stream=stream), environment)


async def benchmark(seconds: float, rate: float, rounds: int, proxy: Path | None, *, stream: bool) -> dict[str, Cost]:
    """Start the servers, measure them in alternation, and stop them; return the median cost of each."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        async with session() as client:

            async def start(server: Server) -> Running:
                running = stack.enter_context(start_server(server, directory))
                await wait_until_working(running, partial(must_answer, client, running))
                return running

            model = f"{(await start(upstream())).address}/v1"
            measured = servers(model, stream=stream)
            if proxy:
                measured.append(litellm_proxy(proxy, model, directory, stream=stream))
            return await measure_all(client, [await start(server) for server in measured], seconds, rate, rounds)


def main(
    seconds: Annotated[
        float, typer.Option(min=1, help="The time for which each server is measured in each round.")
    ] = 20,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="The number of rounds.")] = 3,
    stream: Annotated[bool, typer.Option("--stream", help="Stream the answers.")] = False,
    proxy: Annotated[Path | None, typer.Option(exists=True, help="LiteLLM's `litellm`, to measure its proxy.")] = None,
) -> None:
    """Measure the CPU time and the latency of one tip."""
    costs = run(benchmark(seconds, rate, rounds, proxy.absolute() if proxy else None, stream=stream))
    versions = machine("fastapi", "uvicorn", "uvloop", "httptools", "litellm", "openai")
    typer.echo(f"{rate:g} requests per second, {seconds:g} s per round, median of {rounds}. {versions}\n")
    typer.echo(table(costs, REFERENCE, "(a)"))
    if proxy is None:
        typer.echo("\n(c) LiteLLM's proxy was not measured: it is optional, see --proxy.")


if __name__ == "__main__":
    typer.run(main)
