"""The detection of free text that gives instructions to the model instead of information about the user.

Prompts leave such text out. The expressions are common ones in a few languages: a filter, not a guarantee. The checks
of a tip follow.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from ml.features.free_text import normalise_words

INSTRUCTION_PHRASES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "disregard": (
            "ignore forget disregard override",
            r" (\w+ ){0,4}(instructions?|rules|prompt|above|previous)",
        ),
        "your rules": ("your system secret hidden", r" (instructions?|rules|prompt|message)"),
        "given rules": ("rules instructions", r" (that )?you (were|are) given"),
        "form of the reply": ("reply respond answer output print", r" (only|exactly|with|in|this|your)"),
        "repeat the prompt": ("repeat translate", r" (this|your|the (text|rules|words|prompt|sentence))"),
        "word of the reply": (
            "say saying write mention include contain contains output use",
            r" (\w+ ){0,2}(the (word|token)|a? ?(swear|curse))",
        ),
        "your reply": ("your", r" (tip|reply|answer|response|output)"),
        "the next tip": ("every each next last good best", r" tip"),
        "the reply has to": ("tip reply answer response", r" (begins?|starts?|ends?|contains?|must|has to|should|is)"),
        "tell the user": ("tell persuade convince", r" (me|users|the users?) (to|that|which|how)"),
        "advise me": ("advise recommend suggest", r" (me|that|to me|buying|taking|investing)"),
        "about the model": ("language ai", r" (model|assistant)"),
        "you are": ("you", r" are (now|dan|no longer|an? (ai|assistant|model|\w*bot|pirate)|a \w+ without)"),
        "change of mode": ("developer debug test admin", r" (mode|note)"),
        "role": ("act behave respond", r" (as|like) (an?|my|the)"),
        "pretence": ("pretend", r" (to be|that|you)"),
        "decode": ("decode decrypt obey", r" (this|it|that|the|what)"),
        "encoding": ("base64 rot13", r""),
        "encoding in two words": ("base rot", r" (64|13)"),
        "do as told": ("do", r" (exactly )?(what|as) (\w+ ){1,4}(says?|tells?)"),
        "swearing": ("swear curse", r" (at|word)"),
        "German: disregard": ("ignoriere vergiss missachte", r" (\w+ ){0,3}(anweisung\w*|regeln?|vorgaben?)"),
        "German: reply": ("antworte schreibe schreib sage sag", r" (nur|mit|genau|das wort)"),
        "German: your reply": ("dein deine deinen", r" (tipp|antwort|anweisung\w*|regeln)"),
        "German: advise me": ("empfiehl rate befiehl", r" (mir|dem|ihm|ihr)"),
        "German: role": ("du tu", r" (bist (jetzt|nun|ein|eine)|so als)"),
        "Spanish: disregard": ("ignora olvida", r" (\w+ ){0,3}(instrucciones|reglas)"),
        "Spanish: reply": ("responde escribe di", r" (solo|sólo|con|que|la palabra)"),
        "Spanish: advise me": ("recomiéndame aconséjame dime", r"( que)?( |$)"),
        "Spanish: role": ("eres actúa", r" (ahora|como|una?) "),
        "French: disregard": ("ignore oublie", r" (\w+ ){0,3}(instructions?|consignes?|règles?)"),
        "French: reply": ("réponds écris dis", r" (seulement|uniquement|que|le mot|un gros)"),
        "French: advise me": ("recommande conseille dis", r" moi"),
        "French: role": ("tu fais", r" (es (maintenant|une?) |semblant)"),
        "Italian: disregard": ("ignora dimentica", r" (\w+ ){0,3}(istruzioni|regole)"),
        "Portuguese: disregard": ("ignore esqueça", r" (\w+ ){0,3}(instruções|regras)"),
        "Russian: disregard": ("игнорируй забудь", r" (\w+ ){0,3}(инструкции|правила|указания)"),
    }
)
"""For each expression, its possible first words, and the pattern of what follows, on normalised words."""

INSTRUCTION_MARKS: Mapping[str, str] = MappingProxyType(
    {
        "tag": r"</?\s?[a-z]\w*[^<>]*>",
        "token of a chat template": r"<\||\[/?inst\b",
        "label of a turn": r"\b(system|assistant|user|developer)( \w+)?\s*:",
        "JSON message": r"[\"'](role|content)[\"']\s*:",
        "separator": r"#{3,}|-{3,}|={3,}|`{3,}",
        "Chinese: disregard": r"(忽略|无视|忘记).*(指示|规则|指令|提示)",
        "Japanese: disregard": r"(指示|命令|ルール).*(無視|忘れ)",
        "encoded text": r"\b[a-z0-9+/]{12,}={1,2}",
        "digits as letters": r"\b[a-z]*[0-9][a-z]+[0-9]\w*\W+(\w+\W+)?[a-z]*[0-9][a-z]",
    }
)
"""Patterns of the text itself."""


class InstructionDetector:
    """Detects expressions in a text, given like `INSTRUCTION_PHRASES` and `INSTRUCTION_MARKS`."""

    def __init__(self, phrases: Mapping[str, tuple[str, str]], marks: Mapping[str, str]) -> None:
        self._first_words = frozenset(word for words, _ in phrases.values() for word in words.split())
        patterns = (f"(?:{words.replace(' ', '|')}){rest}" for words, rest in phrases.values())
        self._phrase = re.compile(rf"\b(?:{'|'.join(patterns)})\b")
        self._mark = re.compile("|".join(marks.values()), re.IGNORECASE)

    def detects(self, text: str) -> bool:
        words = normalise_words(text)
        # Most short texts have none of the first words, and looking for those takes a tenth of the time.
        has_first_word = not self._first_words.isdisjoint(words.split())
        return bool((has_first_word and self._phrase.search(words)) or self._mark.search(text))


_DETECTOR = InstructionDetector(INSTRUCTION_PHRASES, INSTRUCTION_MARKS)


def gives_instructions(text: str) -> bool:
    """Return whether a text gives the model an instruction or a role, or imitates the syntax of a prompt."""
    return _DETECTOR.detects(text)
