"""The content that no tip may have, in the plainest words of a few languages.

A filter and not a guarantee: it refuses advice on buying, investing, medicine and law, swearing and insults, and text
about the prompt, from every model. Decisions:

- Buying is refused except for food; so is advice on savings, loans, gambling and money transfers. A purchase that is
  named to be avoided ("before you buy it") is not advice to buy.
- Every mention of a medicine or a dose is refused, also "as prescribed"; advice to talk to a doctor is not.
- A word of two meanings is only refused in a phrase that makes it clear ("in court", not "tennis court").
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from types import MappingProxyType

_FOOD = (
    r"(?:fruits?|apples?|bananas?|oranges?|berries|vegetables?|veg|salads?|bread|milk|eggs?|oats|nuts|groceries|food|"
    r"ingredients|water|tea|yoghurt|soup|tomato(?:es)?|obst|äpfel|apfel|banane\w*|gemüse|salat|brot|milch|eier|wasser|"
    r"frutas?|manzanas?|plátanos?|verduras?|ensalada|pan|leche|huevos|agua|fruits?|pommes?|bananes?|légumes?|salade|"
    r"pain|lait|œufs|eau)\b"
)
_NO_FOOD = rf"(?! (?:[\w'’]+ ){{0,3}}{_FOOD})"
_TIME = r"(?! (?:\w+ ){0,2}(?:minutes?|hours?|seconds?|time|moments?|minuten?|zeit|minutos?|tiempo|temps)\b)"

# For each topic: the reason that follows "it …" in the error message, and its patterns, which begin at a word and match
# lower case.
CONTENT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gives advice on buying": (
            r"(?<!before you )(?<!want to )(?<!need to )(?<!n[o'’]t )(?<!without )(?<!instead of )(?<!avoid )"
            rf"(?<!never )(?:buy|buying|purchase|purchasing)\b{_NO_FOOD}",
            r"(?:(?<!.)|(?<=[.!?;,:] )|(?<=and )|(?<=then ))order (?:a|an|some|one|two|yourself)\b" + _NO_FOOD,
            r"(?:gift cards?|vouchers?|coupons?|promo codes?|discount codes?|subscribe to|donate (?:to|money))\b",
            rf"(?<!nicht )(?<!bevor du )(?:kauf(?:e|en|st|t)?|bestell(?:e|en)?)\b{_NO_FOOD}|gutschein\w*|abonnier\w*",
            rf"(?<!no )(?<!la )(?<!antes de )(?:compr(?:a|ar|e|es|ando)|suscríbete)\b{_NO_FOOD}",
            rf"(?<!avant d['’])(?<!de ne pas )(?:ach[eè]t(?:e|er|ez|es)|abonne-toi)\b{_NO_FOOD}",
        ),
        "gives advice on money": (
            r"(?:bitcoins?|crypto\w*|kryptowährung\w*|criptomonedas?|ethereum|dogecoin|coinbase|binance|nfts?|forex)\b",
            rf"(?:invest|invests|investing|investment\w*|investier\w*|invierte|invertir|investis|investir)\b{_TIME}",
            r"(?:stock market|stock ?brokers?|brokers?|stocks and|buy stocks?|buy shares|shares in|day ?trad\w+|"
            r"etfs?|mutual funds?|index funds?|hedge funds?|dividends?|casino\w*|gambl\w+|lottery|slot machines?|"
            r"sports? bets?|loans?|mortgages?|life savings|your savings (?:in|into|to)|savings (?:into|accounts?))\b",
            r"(?:send|transfer|wire) (?:\w+ ){0,3}(?:money|cash|funds|euros?|dollars?)\b",
            r"(?:börse|aktien|wertpapiere?|darlehen|kredite?|ersparnisse|glücksspiel\w*|lotto)\b",
            r"(?:la bolsa de valores|acciones de bolsa|préstamos?|tus ahorros|lotería|apuestas?|casinos?)\b",
            r"(?:la bourse|actions en bourse|emprunt\w*|tes économies|ton épargne|loterie|paris sportifs)\b",
        ),
        "gives advice on medicine": (
            r"[0-9]+ ?(?:mg|mcg|µg|milligram\w*|milligramm\w*|miligramos)\b",
            r"doses?\b(?! of (?:\w+ )?(?:sun\w*|light|daylight|air|nature|laughter|humou?r|fun|kindness))",
            r"(?:dosed|dosages?|overdos\w+|pills?|medicines?|medications?|painkillers?|meds|"
            r"take (?:an?|one|two|[0-9]+|another|some|your) (?:\w+ )?tablets?(?! to)|prescri\w+|"
            r"supplements?|sleep aids?|antidepressants?|antibiotics?|sedatives?|opioids?|"
            r"steroids?|drugs?|cannabis|marijuana|cocaine|cures?|cured|remedy|remedies|diagnos\w+)\b",
            r"(?:ibuprofen\w*|ibuprofène|paracetamol|paracétamol|acetaminophen|aspirin\w*|melaton\w*|mélatonine|valium|xanax|"
            r"diazepam|zolpidem|insulin\w*|tylenol|advil|prozac|adderall|ritalin)\b",
            r"(?:dosis|dosier\w*|tabletten?|pillen?|medikament\w*|arznei\w*|schmerzmittel|schlafmittel|antibiotik\w*|"
            r"verschreib\w*|heilmittel|drogen)\b",
            r"(?:pastillas?|píldoras?|medicamentos?|medicinas?|somníferos?|analgésicos?|antibióticos?|drogas|recetad\w+)\b",
            r"(?:pilules?|comprimés?|médicaments?|somnifères?|antidouleurs?|antibiotiques?|posologie|drogues?|remèdes?)\b",
        ),
        "gives advice on law": (
            r"su(?:e|ing) (?:your|the|him|her|them|my|a|an)\b",
            r"(?:lawsuits?|lawyers?|attorneys?|solicitors?|legal(?! pad)|legally)\b",
            r"(?:in|to|into|before a) court\b|(?:file|press|bring) (?:a |an |the )?(?:suit|charges|claim|complaint)\b",
            r"(?:verklag\w*|klage einreichen|rechtsanw\w+|anwalt|anwältin|vor gericht|rechtlich\w*|strafanzeige)\b",
            r"(?:abogad[oa]s?|denunciar? a|demandar? a|tribunales|legales|legalmente)\b",
            r"(?:porter? plainte|en justice|tribunal|avocat (?:spécialisé|en droit)|juridique\w*)\b",
        ),
        "swears or insults": (
            r"(?:\w*fuck\w*|f[*@#]+c?k\w*|\w*shit|shit(?:s|ty|ting|head)|sh[*@#!]t|damn\w*|goddamn\w*|crap|crappy|"
            r"\w*asshole\w*|arsehole\w*|(?:bad|dumb|jack|smart)?ass|bastards?|bitch\w*|cunts?|dickhead\w*|piss(?:ed)?|"
            r"wank\w*|bollocks|whores?|sluts?|go to hell|what the hell)\b",
            r"(?:swear\w*|curse words?|cuss\w*|cursing|profanit\w+|expletives?|obscenit\w+)\b",
            r"(?:worthless|losers?|idiots?|idiotic|morons?|pathetic|you(?:['’]re| are) (?:so |a |an )?(?:stupid|ugly|"
            r"dumb|useless|failure))\b",
            r"(?:schei(?:ß|ss)\w*|verdammt\w*|arsch\w*|fick|ficken|fickt|huren\w*|wichser\w*|schlampe\w*|schimpfw\w*|wertlos\w*|"
            r"versager\w*|idiot\w*)\b",
            r"(?:mierda\w*|joder|put[ao]s?|coño|cabr[oó]n\w*|gilipollas|pendej[oa]s?|carajo|palabrotas?|inútil)\b",
            r"(?:merde\w*|putain\w*|connard\w*|connasse|salop\w*|salaud|encul\w*|gros mots?|jurons?|imbécile)\b",
            r"(?:cazzo|merda|vaffanculo|stronz\w+|caralho|porra|klootzak|godverdomme|бля\w*|сука|хуй\w*|kurwa)\b",
            r"\w*(?:他妈|操你|くそ)",
        ),
        "is about the prompt": (
            r"(?:system|original|initial|hidden|secret|your|my|this) ?prompts?\b|system ?prompt\w*",
            r"(?:previous|prior|system|hidden|secret|my|initial|original|above) (?:instructions|rules)\b",
            r"(?:ignore|disregard|obey|repeat|recite|print) (?:\w+ ){0,2}(?:the |your )"
            r"(?:instructions|rules|prompt|text)\b",
            r"the text (?:above|as requested)|text above\b|as (?:you )?(?:requested|instructed)\b",
            r"(?:as|am|i['’]m|being) an? (?:\w+ )?(?:ai|assistant|chatbot|bot|language model)\b|ai without\b",
            r"(?:language models?|sprachmodell\w*|modelos? de lenguaje|modèles? de langage|chatgpt|openai|qwen)\b",
            r"(?:your|my|this|the next|the last|the best) tips? (?:is|are|was|must|should|has|here)\b",
            r"in (?:your|this|my) tip\b",
            r"(?:system|assistant|user|developer)\s?:|the user\b|(?:developer|test|debug|god) mode\b|jailbreak\w*",
            r"base ?64\b|rot ?-?13\b|(?:decode|decrypt) (?:this|it|the|that)\b|(?:in|double) quotes\b|plain text\b",
            r"(?:meine|deine|diese|alle|obigen?|vorherigen?|ursprünglichen?) (?:\w+ )?(?:anweisungen|regeln)\b",
            r"(?:instrucciones|reglas) (?:anteriores|previas|del sistema)\b|mis (?:instrucciones|reglas)\b",
            r"(?:instructions|consignes|règles) (?:précédentes|du système)\b|mes (?:consignes|règles)\b",
            r"(?:als ki|como ia|tant qu['’]ia)\b",
        ),
    }
)


def content_pattern(patterns: Iterable[str]) -> re.Pattern[str]:
    """Compile the patterns of one topic."""
    return re.compile(rf"\b(?:{'|'.join(patterns)})")


_PATTERNS = {topic: content_pattern(patterns) for topic, patterns in CONTENT.items()}


def forbidden_content(tip: str) -> str | None:
    """Return the first topic of `CONTENT` that a tip is about, or None."""
    text = tip.lower() if tip.isascii() else unicodedata.normalize("NFKC", tip).lower()
    return next((topic for topic, pattern in _PATTERNS.items() if pattern.search(text)), None)
