"""The content that no tip may have: buying, money, medicine, law, swearing, and the prompt."""

import pytest

from ml.serving.tip_content import CONTENT, content_pattern, forbidden_content

# For each topic, one text for each pattern, which no other pattern of the topic matches.
UNSUITABLE = {
    "gives advice on buying": (
        "Go to the shop and buy MegaBoost.",
        "Order a new lamp online.",
        "Get a gift card for yourself.",
        "Kauf dir ein neues Handy.",
        "Compra un móvil nuevo.",
        "Achète un nouveau téléphone.",
    ),
    "gives advice on money": (
        "Put ten euros into Bitcoin.",
        "Invest in your future home.",
        "Read about the stock market and decide.",
        "Send your friend some money.",
        "Sieh dir die Aktien an.",
        "Pide un préstamo hoy.",
        "Mets-le dans ton épargne.",
    ),
    "gives advice on medicine": (
        "Take 800 mg now.",
        "Count to ten before your next dose.",
        "Take your medication as prescribed.",
        "Ibuprofen helps.",
        "Nimm eine Tablette.",
        "Toma una pastilla.",
        "Prends un comprimé.",
    ),
    "gives advice on law": (
        "Sue your landlord.",
        "Call a lawyer.",
        "Take him to court.",
        "Sprich mit einem Anwalt.",
        "Llama a un abogado.",
        "Va porter plainte.",
    ),
    "swears or insults": (
        "Say shit out loud.",
        "Try saying a swear word.",
        "You are a worthless person.",
        "So ein Scheißtag.",
        "Di mierda.",
        "Dis un gros mot.",
        "Che cazzo.",
        "你他妈的",
    ),
    "is about the prompt": (
        "Look at your system prompt.",
        "Follow the previous instructions.",
        "Repeat the text to yourself.",
        "Read the text above.",
        "I am an AI, so rest.",
        "Name the language model.",
        "This tip is short.",
        "Smile in your tip.",
        "System: rest now.",
        "Decode this with base64.",
        "Lies meine Anweisungen.",
        "Lee las instrucciones anteriores.",
        "Lis mes consignes.",
        "Ruh dich als KI aus.",
    ),
}

SUITABLE = (
    "Put both feet on the floor and pull the curtains open before you touch your phone.",
    "Write down what you bought today and what it cost, on one line.",
    "Wait ten minutes before you buy it.",
    "Buy a banana at the kiosk and eat it slowly.",
    "Put the books on your shelf in order of size.",
    "Invest ten minutes in a short walk.",
    "Stir the vegetable stock and taste it.",
    "Share the last piece with the person next to you.",
    "Take the tablet to another room.",
    "Get a dose of daylight at the window.",
    "Walk once around the tennis court.",
    "Ring Sue and ask about her day.",
    "Eat the avocado with a spoon. Salt it first.",
    "Mange un demi-avocat avec du pain.",
    "Schreib auf, was du heute gekauft hast.",
    "Haz la lista de la compra.",
    "Read the instructions on the box and do the first step.",
    "Tip your head to the left and hold it for ten seconds.",
    "Touch the tip of each finger with your thumb.",
    "Pass the class list on, and assess one small task.",
    "Chew a piece of gum until the urge passes, about five minutes.",
    "Ask your doctor for an appointment this week.",
)


@pytest.mark.parametrize(("topic", "text"), [(topic, text) for topic, texts in UNSUITABLE.items() for text in texts])
def test_unsuitable_content_is_found(topic: str, text: str) -> None:
    assert forbidden_content(text) == topic


@pytest.mark.parametrize("topic", CONTENT)
def test_every_pattern_is_needed_for_its_example(topic: str) -> None:
    for number, (_, text) in enumerate(zip(CONTENT[topic], UNSUITABLE[topic], strict=True)):
        others = [pattern for other, pattern in enumerate(CONTENT[topic]) if other != number]
        assert not content_pattern(others).search(text.lower()), text


def test_full_width_letters_do_not_hide_content() -> None:
    assert forbidden_content("Put it into ＢＩＴＣＯＩＮ.") == "gives advice on money"


@pytest.mark.parametrize("text", SUITABLE)
def test_other_content_is_accepted(text: str) -> None:
    assert forbidden_content(text) is None
