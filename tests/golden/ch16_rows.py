"""Rows of a small grammar."""
import random

WORDS = "the a cat dog bird fox sees hears follows loves small old red quick and . ,".split()


def sentence(rng):
    """Numbers 3.. stand for WORDS; 1 and 2 are begin and end."""
    def noun():
        out = [rng.choice("the a".split())]
        out += rng.sample("small old red quick".split(), rng.choice([0, 0, 1, 2]))
        return out + [rng.choice("cat dog bird fox".split())]

    words = noun() + [rng.choice("sees hears follows loves".split())] + noun()
    if rng.random() < 0.4:
        words += ["and"] + [rng.choice("sees hears follows loves".split())] + noun()
    return [1] + [3 + WORDS.index(w) for w in words + ["."]] + [2]


def taught_rows(n, seed):
    """Sentences; the first words are the prompt (not learned)."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        ids = sentence(rng)
        cut = rng.randint(2, 5)
        rows.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:]})
    return rows
