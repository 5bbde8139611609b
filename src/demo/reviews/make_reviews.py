#!/usr/bin/env python3
"""Writes reviews.jsonl: SYNTHETIC short reviews with a sentiment, for the demo and nothing else.

Usage: python3 make_reviews.py            writes the file beside this script
       python3 make_reviews.py --check    fails unless the file beside it is what the script writes

No person wrote these reviews: sentences are put together from the lists below by a seeded generator. The sentiment is
that of the verdict, before or after which the opposite may be said of one thing. `dialect` swaps a few American and
British words and nothing else; groups and labels are balanced by construction, in each split. Results on them say
nothing about any real text, dialect or person.
"""

import itertools
import json
import random
import sys
from pathlib import Path

SEED = 20260
TRAIN, VALIDATION = 12, 3  # rows of each (topic, dialect, label)
TARGET = Path(__file__).resolve().parent / "reviews.jsonl"
DIALECTS = ("american", "british")

# What is reviewed; {american|british} words.
TOPICS = {
    "delivery": ["the {package|parcel}", "the {truck|lorry} driver", "the {zip code|postcode} search",
                 "the {mail carrier|postman}", "the delivery to my {apartment|flat}"],
    "gym": ["the {locker room|changing room}", "the class {schedule|timetable}", "the {soccer field|football pitch}",
            "the {sneaker|trainer} shop", "the {parking lot|car park}"],
    "hotel": ["the {elevator|lift}", "our {vacation|holiday} suite", "the {parking lot|car park}",
              "the check-in {line|queue}", "the breakfast {cookie|biscuit} bar"],
    "phone": ["the {cell phone|mobile}", "the {flashlight|torch}", "the {color|colour} screen", "the {gray|grey} case",
              "the prepaid {plan|tariff}"],
    "restaurant": ["the plate of {fries|chips}", "the {appetizer|starter}", "the {takeout|takeaway} menu",
                   "the {eggplant|aubergine} stew", "paying the {check|bill}"],
}
SAID = {
    "positive": ["was better than promised", "was a pleasure", "worked out every time", "could not have been better",
                 "was worth every {cent|penny}", "made my week", "was no trouble at all", "never let us down"],
    "negative": ["was worse than promised", "was a chore", "went wrong every time", "could not have been worse",
                 "was not worth a {cent|penny}", "ruined my week", "was nothing but trouble", "let us down again"],
}
VERDICT = {
    "positive": ["I would come back tomorrow", "the staff sorted it out in minutes", "I have told my friends to try it",
                 "nothing was too much to ask", "I have no complaints", "they kept every word they gave us",
                 "I am glad I did not go elsewhere"],
    "negative": ["I would not come back", "the staff never sorted it out", "I have told my friends to avoid it",
                 "everything was too much to ask", "I have a list of complaints", "they broke every word they gave us",
                 "I wish I had gone elsewhere"],
}
OPENINGS = ("", "", "", "Honestly, ", "{On|At} the weekend, ", "As a regular, ")


def choose(text, dialect):
    """Keeps one word of each {american|british} pair."""
    out, at = "", 0
    while (begin := text.find("{", at)) >= 0:
        end = text.index("}", begin)
        out += text[at:begin] + text[begin + 1 : end].split("|")[DIALECTS.index(dialect)]
        at = end + 1
    return out + text[at:]


def review(rng, topic, dialect, label):
    other = "negative" if label == "positive" else "positive"
    opening, thing, verdict = rng.choice(OPENINGS), rng.choice(TOPICS[topic]), rng.choice(VERDICT[label])
    order = rng.choice(("agrees", "verdict last", "verdict first"))
    said = thing + " " + rng.choice(SAID[label if order == "agrees" else other])
    if order == "agrees":
        text = f"{opening}{said}, and {verdict}."
    elif order == "verdict last":
        text = f"{opening}{said}, but {verdict}."
    else:
        text = f"{opening}{verdict}, although {said}."
    text = choose(text, dialect)
    return text[0].upper() + text[1:]


def rows():
    rng = random.Random(SEED)
    seen, made = set(), []
    for topic, dialect, label in itertools.product(TOPICS, DIALECTS, SAID):
        for number in range(TRAIN + VALIDATION):
            text = review(rng, topic, dialect, label)
            while text in seen:
                text = review(rng, topic, dialect, label)
            seen.add(text)
            made.append({
                "prompt": f"Review: {text}\nSentiment:",
                "completion": f" {label}",
                "label": label,
                "dialect": dialect,
                "topic": topic,
                "split": "train" if number < TRAIN else "validation",
            })
    rng.shuffle(made)
    return made


def main():
    text = "".join(json.dumps(row) + "\n" for row in rows())
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text(encoding="utf-8") != text:
            sys.exit(f"{TARGET.name} is not what {Path(__file__).name} writes")
    else:
        TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
