"""The topics of a goal in the user's own words, by which goals are compared."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

TOPIC_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "sleep": "sleep sleeping asleep awake insomnia rest rested bed bedtime night nights sleeper tired",
        "waking": (
            "wake waking oversleep oversleeping snooze snoozing early earlier riser alarm mornings get-up getting-up "
            "out-of-bed"
        ),
        "punctuality": "punctual punctuality late on-time",
        "fitness": (
            "fit fitter fitness shape exercise exercising workout workouts gym sport sports train training "
            "active athletic stamina endurance cardio ski skiing hike hiking swim swimming swimmer cycle cycling "
            "tennis football climbing"
        ),
        "strength": (
            "strong stronger strength muscle muscles push-ups pushups pull-ups pullups squats plank lift "
            "lifting weights biceps abs arms legs core"
        ),
        "running": "run running runner jog jogging marathon race 5k 10k kilometres kilometers parkrun triathlon",
        "walking": "walk walks walking steps step pedometer",
        "sitting": "sit sitting stand standing chair desk-bound sedentary",
        "moving": "move moving movement",
        "posture": "posture back-pain slouch slouching stiff stretch stretching flexible flexibility yoga",
        "water": "water hydrate hydrated hydration drink drinking",
        "alcohol": "alcohol wine beer sober drink-less",
        "smoking": "smoke smoking smoker cigarette cigarettes nicotine vape vaping tobacco",
        "vegetables": (
            "vegetable vegetables veg veggies fruit fruits salad salads greens healthy healthier healthily "
            "diet nutrition vegan vegetarian fibre fiber protein eat-well eat-better"
        ),
        "weight": (
            "weight slim slimmer kilos pounds kg snack snacks snacking sugar sweets chocolate portion "
            "portions overeating eat-less calories belly"
        ),
        "cooking": "cook cooking takeaway takeaways takeout delivery homemade recipe recipes kitchen meals",
        "breakfast": "breakfast breakfasts",
        "thesis": "thesis dissertation essay paper report chapter article proposal phd manuscript",
        "writing": (
            "write writing novel story stories book poem poems poetry blog diary journal journaling memoir "
            "author screenplay"
        ),
        "studying": (
            "exam exams study studying studies test tests finals course class homework maths math revise "
            "revision university degree certificate license licence"
        ),
        "coding": "coding code program programming python software",
        "language": (
            "spanish french german english italian japanese chinese mandarin portuguese korean arabic "
            "russian turkish dutch swedish norwegian danish polish greek hindi language languages vocabulary "
            "fluent"
        ),
        "reading": "read reading reader books book novels literature classics pages",
        "music": (
            "guitar piano violin ukulele drums drum cello flute saxophone trumpet harp bass instrument sing "
            "singing music song songs choir"
        ),
        "drawing": "draw drawing paint painting sketch sketching watercolour watercolor",
        "gardening": "garden gardening herbs plants balcony",
        "hobby": (
            "hobby hobbies photography photos knit knitting crochet craft crafts pottery chess sewing woodwork model "
            "juggle juggling magic"
        ),
        "phone": (
            "phone smartphone screen screens scroll scrolling instagram tiktok facebook youtube online "
            "internet social-media doomscrolling tv television netflix games gaming"
        ),
        "focus": (
            "focus focused concentrate concentration distracted distraction distractions procrastinate "
            "procrastinating procrastination putting attention deep-work"
        ),
        "email": "email emails e-mail e-mails inbox mail mails messages message",
        "order": (
            "organised organized organise organize organisation tasks priorities plan planning deadlines productive"
        ),
        "leaving": "overtime overwork leave-work work-life home-on-time balance",
        "job": "job jobs interview career promotion application cv resume apply",
        "presenting": "presentation presentations speech speeches present presenting public-speaking talk talks",
        "tidiness": (
            "tidy tidier tidying clean cleaner cleaning declutter clutter household laundry chores dishes neat garage "
            "attic wardrobe"
        ),
        "money": (
            "money save saving savings spending budget budgeting debt bills cheaper impulse-buying "
            "spend-less-money spend-less-on spend-money"
        ),
        "family": (
            "family parents mother father mom mum dad grandmother grandma grandfather grandpa sister brother "
            "grandparents relatives aunt uncle"
        ),
        "partner": "partner wife husband girlfriend boyfriend marriage relationship spouse",
        "friends": (
            "friend friends social lonely loneliness sociable neighbours neighbors new-people meet-people more-people"
        ),
        "children": (
            "kid kids child children son daughter toddler baby parent parenting better-mother better-father "
            "better-dad better-mum better-mom good-mother good-father good-dad good-mum good-mom "
            "patient-mother patient-father patient-dad patient-mum patient-mom"
        ),
        "calm": (
            "calm calmer calmly stress stressed stressful anxious anxiety worry worries worrying patience "
            "patient relax relaxed nervous panic overwhelmed temper anger angry mindful mindfulness meditate "
            "meditation unwind peace"
        ),
        "happiness": "happy happier happiness mood grateful gratitude confidence confident positive joy cheerful",
    }
)
"""The words of each topic. A hyphen joins words that belong to the topic only together."""

_TOPICS_BY_WORD: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        word: frozenset(topic for topic, others in TOPIC_WORDS.items() if word in others.split())
        for words in TOPIC_WORDS.values()
        for word in words.split()
    }
)


def goal_topics(goal: str) -> frozenset[str]:
    """Return the topics of a goal in English; none for a goal without a known word."""
    return frozenset().union(*(_TOPICS_BY_WORD.get(term, ()) for term in _terms(goal.lower())))


def _terms(text: str) -> Iterator[str]:
    """Yield the words of a text, and each two and three successive words, joined."""
    words = re.findall(r"[a-z0-9]+(?:-[a-z]+)*", text)
    for length in (1, 2, 3):
        yield from ("-".join(words[start : start + length]) for start in range(len(words) - length + 1))
