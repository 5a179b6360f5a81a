"""The detection of addresses in a text: of sites, of mailboxes and of accounts."""

import re

# A scheme, a mailbox or an account, `www.`, an IPv4 address.
_ADDRESS = re.compile(
    r"//|\b(mailto|tel|sms|javascript|data):\S|[@\uff20]|\bwww\d?[.\uff0e\u3002]|\b\d{1,3}(\.\d{1,3}){3}\b",
    re.IGNORECASE,
)

# A dot between words, with the word after it. IDNA treats the full-width and the ideographic full stops as dots too.
_DOT = re.compile(r"[\w-][.\uff0e\u3002\uff61]([^\W\d_]{2,24}|xn--[\w-]+)(?![\w-])(/?)")

_COMMON_TOP_LEVEL_DOMAINS = re.compile("com|net|org|info|biz|io|co|app|dev|xyz|online|site|shop|store|link|gov|edu")

# Scripts without capitals often have no space after a full stop, so there only the best-known domains count.
_INTERNATIONAL_TOP_LEVEL_DOMAINS = re.compile(
    "中国|中國|公司|网络|网址|香港|台湾|台灣|新加坡|みんな|コム|한국|닷컴|ไทย|भारत|ভারত|இலங்கை|السعودية|امارات|مصر|المغرب|ایران|موقع|شبكة"
)


def contains_address(text: str) -> bool:
    """Return whether a text contains an address, such as `evil.com`, `//evil`, `www.`, `a@b` or `@name`."""
    return bool(_ADDRESS.search(text)) or any(map(_ends_domain, _DOT.finditer(text)))


def _ends_domain(dot: re.Match[str]) -> bool:
    """Return whether the word after a dot ends a domain, or begins a sentence without a space (`ten.Then`).

    Any word of two letters or more in one case counts: there are more than a thousand top-level domains, with new ones
    every year. An abbreviation has single letters (`e.g.`, `z.B.`, `a.m.`).
    """
    word, path = dot.groups()
    return bool(
        path
        or word.islower()
        or word.isupper()
        or _COMMON_TOP_LEVEL_DOMAINS.fullmatch(word.lower())
        or _INTERNATIONAL_TOP_LEVEL_DOMAINS.fullmatch(word)
    )
