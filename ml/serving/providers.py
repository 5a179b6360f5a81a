"""The providers that LiteLLM knows, and the environment variables that may hold their keys.

LiteLLM takes seconds to import, so this is a copy: settings are checked at start-up without it. A test compares it with
LiteLLM.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

PROVIDERS = frozenset(
    """
    a2a a2a_agent ai21 ai21_chat aiml aiohttp_openai amazon_nova anthropic anthropic_text apertis assemblyai
    auto_router aws_polly aws_textract azure azure_ai azure_speech azure_text baseten bedrock bedrock_mantle
    black_forest_labs bytez cerebras charity_engine chatgpt chutes clarifai cloudflare codestral cognition cohere
    cohere_chat cometapi compactifai cortecs cursor custom custom_openai darkbloom dashscope databricks datarobot
    deepgram deepinfra deepseek docker_model_runner dotprompt edenai elevenlabs empower fal_ai featherless_ai
    fireworks_ai friendliai galadriel gdc gemini gigachat github github_copilot gradient_ai groq helicone heroku
    hosted_vllm huggingface humanloop hyperbolic inception infinity jina_ai lambda_ai langflow langfuse langgraph
    lemonade libertai litellm_agent litellm_proxy llamafile lm_studio manus maritalk meta meta_llama milvus minimax
    mistral modelscope mongodb moonshot morph nadir nano-gpt nebius neosantara nlp_cloud novita nscale nvidia_nim
    nvidia_riva oci ollama ollama_chat oobabooga openai openai_like openrouter ovhcloud parasail perplexity petals
    pg_vector pinstripes poe predibase prism publicai qwen_ai_platform qwencloud ragflow recraft reducto reka
    replicate runwayml s3_vectors sagemaker sagemaker_chat sagemaker_nova sail sambanova sap scaleway scx-ai
    snowflake soniox stability strands_decider synthetic tencent tensormesh text-completion-codestral
    text-completion-inception text-completion-openai together_ai topaz transcribe triton typesafe v0 valkey
    vercel_ai_gateway vertex_ai vertex_ai_beta vllm volcengine voyage wandb watsonx watsonx_text xai xiaomi_mimo
    xinference zai
    """.split()  # noqa: SIM905 - a literal list would take a line for each
)

KEY_VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        "cerebras": ("CEREBRAS_API_KEY",),
        "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
        "deepinfra": ("DEEPINFRA_API_KEY",),
        "deepseek": ("DEEPSEEK_API_KEY",),
        "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
        "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        "groq": ("GROQ_API_KEY",),
        "mistral": ("MISTRAL_API_KEY", "MISTRAL_AZURE_API_KEY"),
        "moonshot": ("MOONSHOT_API_KEY",),
        "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
        "openai": ("OPENAI_API_KEY",),
        "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
        "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
        "replicate": ("REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
        "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_AI_TOKEN"),
        "xai": ("XAI_API_KEY",),
    }
)
"""The variables of providers that always need a key and take it from one of them; the usual one first."""


def check_provider(model: str) -> None:
    """Raise ValueError unless LiteLLM knows the provider of this model id."""
    provider = model.partition("/")[0]
    if provider not in PROVIDERS:
        example = next(iter(difflib.get_close_matches(provider, PROVIDERS, n=1)), "openai")
        raise ValueError(f"should begin with a provider that LiteLLM knows, such as {example}")


def missing_key(model: str, environment: Mapping[str, str]) -> str:
    """Return the name of the variable that should hold the key for `model` but is unset; empty if none is missing."""
    variables = KEY_VARIABLES.get(model.partition("/")[0], ())
    return "" if not variables or any(environment.get(name) for name in variables) else variables[0]
