"""The model cards that serving knows: of its prompt versions, of the loaded ranking policies, and of its models."""

from collections.abc import Iterable

from ml.features.definitions import SIGNALS
from ml.registry.cards import CardInput, ModelCard
from ml.registry.policies import LearnedPolicy, Ranker
from ml.registry.ranking_cards import feature_inputs, ranking_card, uniform_card
from ml.serving.prompts import PROMPTS, Prompt
from ml.serving.published_weights import QWEN
from ml.serving.settings import EMBEDDED_MODEL, ServingSettings

LICENCE = "apache-2.0"
"""The licence of what is part of this project."""

MESSAGES = CardInput(
    name="messages",
    type="array",
    range="the chat messages that a prompt version makes of a user's signals; the card of the version has their ranges",
)

PROMPT_LIMITS = (
    "It knows of the user only what the signals say, each of which may be missing.",
    "Its tips depend on the model that completes it; a small model follows it less well, above all in other languages "
    "than English.",
    "The rules for content are word lists in English, German, Spanish and French: a filter, not a guarantee.",
)
PROMPT_SAFETY = (
    "Free text of a user is quoted as data; free text that gives the model instructions is left out.",
    "It forbids medical, legal and financial advice, and every tip is checked: no addresses, no hidden characters, no "
    "advice on buying (except food), investing, medicine or law, no swearing, no text about the prompt.",
    "If a free text states a crisis, the tip only asks the user to call a crisis line or to talk to someone whom they "
    "trust.",
    "Of 120 attempts to give the embedded model instructions in free text, 37 were obeyed without these rules and none "
    "with them; of 72 others for which no rule was made, 2 were obeyed in part. Hosted models were not measured.",
)

EMBEDDED_LIMITS = (
    "It is small (1.5 billion parameters of 4 bits): its tips are usable in English, and often not in other languages.",
    "It writes one tip at a time.",
    "It exists so that the service works without a key; for real users, use a larger model.",
)
EMBEDDED_SAFETY = (
    "It is too small to ignore instructions in free text: without the rules of the service it obeyed 37 of 120.",
    "It runs in the process of the service, so no signal of a user leaves the machine.",
    "In a crisis it can only choose among fixed sentences.",
)
OWN_FILE_LIMITS = (
    "It is a file of the operator's own (EMBEDDED_MODEL_PATH), of which the service knows nothing more; its SHA-256 is "
    "in the log.",
    "It writes one tip at a time.",
)


def serving_cards(settings: ServingSettings, policies: Iterable[Ranker]) -> tuple[ModelCard, ...]:
    """Return the cards of all prompt versions, of the uniform policy and these `policies`, and of all models."""
    contact = settings.card_contact
    learned = {policy.version: policy.card for policy in policies if isinstance(policy, LearnedPolicy)}
    return (
        *(_prompt_card(version, prompt, contact) for version, prompt in PROMPTS.items()),
        uniform_card(contact=contact),
        *(ranking_card(card, version, contact=contact) for version, card in learned.items()),
        *(_model_card(model, settings) for model in dict.fromkeys(settings.models)),
    )


def _prompt_card(version: str, prompt: Prompt, contact: str | None) -> ModelCard:
    return ModelCard(
        name=version,
        kind="prompt",
        version=version,
        digest=prompt.digest,
        purpose=prompt.description,
        inputs=tuple(feature_inputs()[name] for name in SIGNALS),
        limits=PROMPT_LIMITS,
        safety=PROMPT_SAFETY,
        licence=LICENCE,
        contact=contact,
    )


def _model_card(model: str, settings: ServingSettings) -> ModelCard:
    if model != EMBEDDED_MODEL:
        return _hosted_card(model, settings.card_contact)
    is_own = settings.embedded_model_path is not None
    return ModelCard(
        name=model,
        kind="model",
        version=model,
        digest=None if is_own else QWEN.sha256,
        purpose="Writes tips in the process of the service, without a key or a network.",
        inputs=(MESSAGES,),
        limits=OWN_FILE_LIMITS if is_own else EMBEDDED_LIMITS,
        safety=EMBEDDED_SAFETY[1:] if is_own else EMBEDDED_SAFETY,
        licence="That of the operator's own file; see where it was published." if is_own else QWEN.licence,
        contact=settings.card_contact,
    )


def _hosted_card(model: str, contact: str | None) -> ModelCard:
    provider = model.partition("/")[0]
    return ModelCard(
        name=model,
        kind="model",
        version=model,
        purpose=f"Writes tips, called through the provider {provider}.",
        inputs=(MESSAGES,),
        limits=(
            "The service knows its id only: not its weights, nor what it was trained on.",
            "The provider may change the model behind this id; a digest that would show this is not known.",
        ),
        safety=(
            "The signals of a user, in the words of the prompt version, are sent to the provider.",
            "Its tips are checked like those of any model; how it treats instructions in free text was not measured.",
        ),
        licence=f"The terms of the provider {provider} apply.",
        contact=contact,
    )
