"""A rubric for English tips: the defects of a tip in its situation that can be found without a reader's judgement.

It is lenient where sense is needed: a tip without a defect may still be odd, so read tips as well.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE)


MAX_MINUTES = 12
"""The longest activity that a tip may ask for."""

_NUMBER = _pattern(
    r"\d|\b(one|two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|half|first|next|last|single|once"
    r"|twice)\b"
)
_OBJECT = _pattern(
    r"\b(glass|cup|bottle|tap|water|tea|plate|bowl|fork|pan|fridge|table|sink|salad|tomato|carrot|vegetables?|apple|banana"
    r"|fruit|egg|rice|oats|toast|yogh?urt|nuts?|gum|straw|window|curtains?|light|lamp|desk|chair|bench|door|floor|wall"
    r"|stairs|shelf|sofa|drawer|mirror|towel|clothes|dish(es)?|sock|bed|pillow|blanket|alarm|clock|kitchen|corner|street"
    r"|tree|bag|shoes?|phone|headphones?|app|tab|email|messages?|calendar|timer|music|video|podcast|article|paper|pen|note"
    r"|notebook|sticky|list|task|book|page|document|outline|paragraph|sentence|phrase|word|song|chord|guitar|squats?"
    r"|push-?ups?|plank|lunges?|reps?|set|shoulders?|neck|hands?|arms?|legs?|feet|toes|heels?|calf|back|eyes|jaw|face"
    r"|kids?|child(ren)?|friend|parents?|mother|mom|father|dad|neighbou?r|colleague)\b"
)
_GENERIC = _pattern(
    r"deep(ly)? breath|breathe deep|take (a few|some|slow|a couple of)?( deep)? ?breaths|practice (deep|slow|good)"
    r"|meditat|mindful|clear your (mind|head)|positive|focus on (your|the|one|each|what)|relax(es|ing)?\b|self.care"
    r"|take a (short |quick |small |few |\d+.minute )?(break|rest|nap)\b|get some (rest|sleep)|stay hydrated|fresh air"
    r"|something (you enjoy|that)|healthy|well-being|productiv|prioriti|reduce stress|energy level|quality"
    r"|\b(manage|improve|boost|help) (your|you)\b|quick stretch|stretch or|or walk"
)
_FORM = _pattern(
    r"^suggest|^you (can|could|should|might|may)|one small thing|^I |\bI (will|can|am)\b|^consider|^try to\b"
)
_BROKEN = _pattern(r"\b(a|an|the|your|of|to|for|with|in|and|or|like|such as)\s*[.!?]")
_OWN_GOAL = _pattern(r"\b(your|my) goal\b")

_DURATION = _pattern(
    r"(\d+|a few|half an?|an?|one|two|three|five|ten|fifteen|twenty|thirty)[ -]*(minutes?|mins?|hours?)\b"
)
_NUMBER_WORDS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "five": 5,
    "ten": 10,
    "fifteen": 15,
    "twenty": 20,
    "thirty": 30,
    "a few": 3,
    "half a": 30,
    "half an": 30,
}

# What cannot be done in bed at night, where most advice for the day is unsuitable.
_OUT_OF_BED = (
    r"\bwalk|\bstand\b|\boutside\b|\brun\b|jog|yoga|exercis|push-?up|squat|shower|coffee|kitchen|desk|stairs|dance"
    r"|workout|work out|get out of bed|leave the room|garden|get up\b"
    r"|\bglass of|warm drink|make (a|some)|bath|game|video|\bTV\b|email|nap\b"
)
_IN_BED_IN_THE_MORNING = (
    r"\bnap\b|go (back )?to (bed|sleep)|stay in bed|jog|\brun\b|sleep (earlier|more)|for \d+ hours|meditat"
    r"|before (bed|sleep)|bedtime"
)
_LATE = r"coffee|\brun\b|jog|workout|push-?up|outside|work out|energy drink"
_BEFORE_MANY_MEETINGS = r"yoga|outside|(\b[6-9]|1\d|2\d|ten|fifteen)[ -]minute|for (1\d|2\d|3\d) min|go for a"
_DURING = {
    "working": (
        r"\byoga|\bbath\b|go to bed|for a run|\bjog|\bnap\b|movie|lie down|shower|gym\b|nature walk|park\b|hobby"
        r"|read a book|a good book|friends? (for|over)"
    ),
    "commuting": (
        r"\byoga|lie down|desk|kitchen|sofa|couch|cook|shower|push-?up|bath|candle|your (living )?room|at home"
        r"|short walk|for a walk|walk (around|for)"
    ),
    "walking": (
        r"\bdesk|sit (down )?(at|in a) (chair|desk)|yoga|\bread\b|lie down|your chair|go for a walk"
        r"|(take|taking) a (short |quick |brief |\d+.minute )?walk|start walking"
    ),
    "eating": (r"\bwalk|jog|push-?up|squat|yoga|exercis|stretch|stand up|run\b|cook a|before (eating|your meal)"),
    "exercising": r"\bdesk|\bemail|take a (short |\d+.minute )?walk|go for a walk|\bnap\b|couch|gym\b",
    "relaxing": r"\bgo to work\b",
    "sitting": r"\bgo to work\b",
}


def defects(tip: str, signals: Mapping[str, Any], on_goal: str | None = None) -> set[str]:
    """Return the names of the defects of a tip for the user with these signals; none if it passes.

    `on_goal`: a pattern, which a tip that serves the user's goal matches; None if every tip does.
    """
    found = {
        "unsuitable": any(_pattern(text).search(tip) for text in _unsuitable(signals)),
        "long": _longest_minutes(tip) > MAX_MINUTES,
        "vague": not (_NUMBER.search(tip) or _OBJECT.search(tip)),
        "generic": _GENERIC.search(tip),
        "off-goal": on_goal and not _pattern(on_goal).search(tip),
        "echo": _repeats_goal(tip, signals.get("goal", "")),
        "form": _FORM.search(tip),
        "broken": _BROKEN.search(tip),
    }
    return {name for name, is_found in found.items() if is_found}


def word_overlap(tip: str, other: str) -> float:
    """Return the Jaccard index of the content words of two tips, from 0 (no word in common) to 1."""
    words, other_words = _content_words(tip), _content_words(other)
    return len(words & other_words) / max(1, len(words | other_words))


def _unsuitable(signals: Mapping[str, Any]) -> Iterator[str]:
    """Yield patterns of what does not suit the place and the hour."""
    activity = signals.get("activity")
    hour = int(signals.get("local_time", "12:00")[:2])
    meetings = signals.get("meetings_left_today", 0)
    is_late = hour >= 21 or hour < 5
    if activity == "in_bed" and (hour >= 20 or hour < 5):
        yield _OUT_OF_BED
    elif activity == "in_bed" and hour < 11:
        yield _IN_BED_IN_THE_MORNING
    elif is_late and activity != "in_bed":
        yield _LATE
    if hour < 13 or hour >= 17 or meetings >= 2:
        yield r"\bnap\b"
    if meetings >= 3:
        yield _BEFORE_MANY_MEETINGS
    if activity in _DURING:
        yield _DURING[activity]
    if "smok" in signals.get("goal", ""):
        yield r"have a cigarette|smoke (a|one)"


def _longest_minutes(tip: str) -> int:
    longest = 0
    for number, unit in _DURATION.findall(tip.lower()):
        amount = int(number) if number.isdigit() else _NUMBER_WORDS[number]
        # "half an hour" is thirty minutes already.
        longest = max(longest, amount * (60 if unit.startswith("hour") and not number.startswith("half") else 1))
    return longest


def _repeats_goal(tip: str, goal: str) -> bool:
    if not goal:
        return False
    words = _content_words(tip)
    added = words - _content_words(goal)
    return goal.lower() in tip.lower() or (bool(words) and len(added) <= 2) or bool(_OWN_GOAL.search(tip))


_STOP_WORDS = {
    *(
        "a",
        "an",
        "the",
        "your",
        "you",
        "to",
        "and",
        "of",
        "in",
        "on",
        "for",
        "at",
        "with",
        "it",
        "or",
        "is",
        "be",
        "this",
    ),
    "that",
}


def _content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower())) - _STOP_WORDS
