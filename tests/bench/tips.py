"""The quality of the embedded model's tips: how many pass a rubric in twenty situations, and what they cost.

Run `python -m tests.bench.tips` for one tip of each prompt version in each situation, `--tips` to read them too. No
situation is in a library of examples (a test checks it), and nothing may be changed for one of them in particular: use
other situations to improve tips. The CPU time is that of this process, which runs the model.
"""

import asyncio
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ml.platform.errors import UnusableTip
from ml.platform.telemetry import Telemetry
from ml.serving.app import build_gateway, build_generator
from ml.serving.generate import TipGenerator
from ml.serving.prompts import PROMPTS
from ml.serving.settings import ServingSettings
from tests.bench.figures import machine
from tests.tip_rubric import defects, word_overlap


@dataclass(frozen=True, slots=True)
class Situation:
    """Signals, and a pattern that a tip for their goal matches; None if every tip does."""

    signals: Mapping[str, Any]
    on_goal: str | None


@dataclass(frozen=True, slots=True)
class MeasuredTip:
    """The text of a tip (empty if it could not be shown), its defects, and the CPU seconds that it took."""

    text: str
    defects: frozenset[str]
    cpu_seconds: float


SITUATIONS: tuple[Situation, ...] = (
    Situation(
        {"goal": "sleep better", "mood": "okay", "stress": 6, "activity": "in_bed", "local_time": "22:15"},
        "bed|light|pillow|phone|screen|breath|eyes|blanket|muscle|alarm|jaw|shoulder|toes|listen|sleep|lamp|count",
    ),
    Situation(
        {
            "goal": "get back in shape",
            "stress": 7,
            "activity": "working",
            "meetings_left_today": 4,
            "local_time": "11:40",
        },
        "walk|stairs|squat|stand|stretch|push-?up|calf|heel|march|wall|step|shoulder|lunge|chair|plank|leg",
    ),
    Situation(
        {"goal": "finish my thesis", "energy": 4, "open_tasks": 6, "activity": "working", "local_time": "09:30"},
        "sentence|paragraph|page|outline|chapter|write|draft|section|figure|reference|heading|bullet|document",
    ),
    Situation(
        {
            "goal": "get up earlier",
            "sleep_hours": 5,
            "energy": 2,
            "activity": "in_bed",
            "local_time": "07:00",
            "weekday": "tuesday",
        },
        "feet|curtain|light|water|sit up|floor|blanket|alarm|phone|stand|window|bed|face",
    ),
    Situation(
        {"goal": "sit less", "activity": "sitting", "minutes_since_break": 180, "local_time": "15:10"},
        "stand|walk|stretch|get up|chair|step|calf|heel|rise|stairs|march",
    ),
    Situation(
        {"goal": "read more", "stress": 6, "activity": "commuting", "local_time": "08:15"},
        "read|page|book|chapter|article|poem|paragraph|audiobook",
    ),
    Situation(
        {"goal": "eat more vegetables", "activity": "eating", "local_time": "12:40", "mood": "okay"},
        "vegetable|salad|tomato|carrot|cucumber|spinach|pepper|broccoli|greens|plate|bean|pea|lettuce|leaf",
    ),
    Situation(
        {"goal": "walk 8,000 steps a day", "steps_today": 3000, "activity": "walking", "local_time": "17:30"},
        "walk|block|corner|street|step|route|turn|lap|loop|minutes|tree|pace|path",
    ),
    Situation(
        {"goal": "get stronger", "energy": 6, "activity": "exercising", "local_time": "18:20"},
        "rep|set|squat|push|plank|weight|lift|slow|lunge|hold|row|bridge",
    ),
    Situation(
        {"goal": "spend less time on my phone", "mood": "low", "activity": "relaxing", "local_time": "20:45"},
        "phone|drawer|room|charger|book|off|screen|app|notification",
    ),
    Situation(
        {"stress": 8, "open_tasks": 14, "activity": "working", "local_time": "16:45", "weekday": "friday"},
        None,
    ),
    Situation(
        {"energy": 2, "sleep_hours": 4.5, "meetings_left_today": 2, "activity": "sitting", "local_time": "14:05"},
        None,
    ),
    Situation(
        {"goal": "learn Spanish", "energy": 6, "activity": "relaxing", "local_time": "19:30"},
        "spanish|word|phrase|song|sentence|verb|flashcard|vocabular",
    ),
    Situation(
        {"goal": "drink more water", "minutes_since_break": 95, "activity": "working", "local_time": "10:20"},
        "water|glass|bottle|drink|tap|sip",
    ),
    Situation(
        {"goal": "stay calm before my exams", "stress": 9, "activity": "sitting", "local_time": "21:00"},
        "breath|exhale|note|page|paper|list|question|topic|shoulder|hand|book|bag|water|tea|window|jaw|timer|write",
    ),
    Situation(
        {"goal": "run a 10k", "mood": "great", "energy": 9, "local_time": "10:00", "weekday": "saturday"},
        "run|jog|shoe|lace|minute|kilomet|block|warm|stride|knee|calf|ankle",
    ),
    Situation(
        {"mood": "awful", "energy": 2, "activity": "relaxing", "local_time": "16:00", "weekday": "sunday"},
        None,
    ),
    Situation(
        {"goal": "call my parents more often", "mood": "good", "local_time": "11:00", "weekday": "sunday"},
        "call|parent|mother|mom|mum|dad|father|phone|ring|dial|message",
    ),
    Situation(
        {"goal": "quit smoking", "stress": 7, "minutes_since_break": 60, "activity": "working", "local_time": "13:30"},
        "water|gum|craving|cigarette|lighter|pack|walk|hands|pen|breath|carrot|straw|mint|timer|smok|apple|chew|drawer",
    ),
    Situation(
        {"goal": "stop lying awake", "stress": 7, "activity": "in_bed", "local_time": "01:30"},
        "bed|light|clock|phone|breath|eyes|count|muscle|toes|pillow|paper|exhale|jaw|list|blanket|picture|sleep|room",
    ),
)


def main(
    show: Annotated[bool, typer.Option("--tips", help="Print the tips too.")] = False,
) -> None:
    """Print the table."""
    measured = asyncio.run(measure_all())
    if show:
        for number, situation in enumerate(SITUATIONS):
            print(situation.signals)
            for version, tips in measured.items():
                tip = tips[number]
                print(f"  {version:12} {', '.join(sorted(tip.defects)) or 'passes':20} {tip.text}")
    print(machine("xllamacpp", "litellm"))
    print("| version | pass the rubric | CPU s a tip | defects |")
    print("|---|---|---|---|")
    for version, tips in measured.items():
        passed = sum(not tip.defects for tip in tips)
        cpu_seconds = statistics.mean(tip.cpu_seconds for tip in tips)
        found = Counter(itertools.chain.from_iterable(tip.defects for tip in tips))
        summary = ", ".join(f"{name} {count}" for name, count in found.most_common())
        print(f"| `{version}` | {passed} of {len(tips)} | {cpu_seconds:.1f} | {summary} |")
    for first, second in itertools.combinations(measured, 2):
        pairs = zip(measured[first], measured[second], strict=True)
        overlap = statistics.mean(word_overlap(one.text, other.text) for one, other in pairs)
        print(f"Word overlap of {first} and {second}: {overlap:.2f}")


async def measure_all() -> dict[str, list[MeasuredTip]]:
    """Return the tips of each prompt version, in the order of the situations."""
    settings = ServingSettings(generate_timeout_seconds=600)
    async with build_gateway(settings).running() as gateway:
        await gateway.warm_up([prompt.prefix for prompt in PROMPTS.values()])
        generator = build_generator(settings, gateway, Telemetry())
        return {
            version: [await measure(generator, situation, version) for situation in SITUATIONS] for version in PROMPTS
        }


async def measure(generator: TipGenerator, situation: Situation, version: str) -> MeasuredTip:
    start = time.process_time()
    try:
        text = (await generator.generate(situation.signals, version)).text
        found = frozenset(defects(text, situation.signals, situation.on_goal))
    except UnusableTip:
        text, found = "", frozenset({"unusable"})
    return MeasuredTip(text, found, time.process_time() - start)


if __name__ == "__main__":
    typer.run(main)
