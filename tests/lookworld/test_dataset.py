from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from la_trt.errors import UsageError
from la_trt.lookworld import FAMILIES, SPLIT_SEEDS, USUAL_COLOUR, WorldConfig, all_text, sample

CONFIG = WorldConfig()
TEST_SPLITS = ("test", "test-inverted")


def test_samples_are_pure_and_images_are_optional():
    for index in (0, 1, 19, 111):
        one, two = (sample("train", index, CONFIG) for _ in range(2))
        bare = sample("train", index, CONFIG, want_image=False)
        assert one.image is not None and two.image is not None and bare.image is None
        assert one.image.size == (one.scene.width, one.scene.height)
        assert one.image.tobytes() == two.image.tobytes()
        assert replace(one, image=None) == replace(two, image=None) == bare


def test_splits_share_no_seed_and_no_scene():
    assert len(set(SPLIT_SEEDS.values())) == len(SPLIT_SEEDS) == 4
    scenes = {
        split: {sample(split, k, CONFIG, want_image=False).scene.objects for k in range(150)}
        for split in SPLIT_SEEDS
    }
    assert all(len(objects) == 150 for objects in scenes.values())
    assert len(set.union(*scenes.values())) == 4 * 150
    for split, seed in SPLIT_SEEDS.items():
        assert sample(split, 3, CONFIG, want_image=False).scene.seed == seed


def test_samples_of_one_split_share_no_scene_either():
    indices = [sample("train", k, CONFIG, want_image=False).scene.index for k in range(300)]
    assert len(set(indices)) == 300


def test_families_are_drawn_by_weight_alike_in_both_test_splits():
    for split in TEST_SPLITS:
        drawn = [sample(split, k, CONFIG, want_image=False).question.family for k in range(800)]
        table = Counter(drawn)
        assert set(table) == set(FAMILIES)
        assert all(50 <= num <= 115 for num in table.values()), table
    only = tuple(float(family in ("count", "sum")) for family in FAMILIES)
    config = replace(CONFIG, family_weights=only)
    drawn = [sample("test", k, config, want_image=False).question.family for k in range(60)]
    assert set(drawn) == {"count", "sum"}


def test_the_inverted_split_inverts():
    fracs = {}
    for split in TEST_SPLITS:
        objects = [
            o
            for k in range(300)
            for o in sample(split, k, CONFIG, "describe", want_image=False).scene.objects
        ]
        fracs[split] = np.mean([USUAL_COLOUR[o.shape] == o.colour for o in objects])
    assert fracs["test"] > 0.5 and fracs["test-inverted"] < 0.12, fracs


def test_text_for_the_tokenizer_is_questions_and_responses():
    texts = list(all_text(30))
    assert len(texts) == 60 and texts == list(islice(all_text(40), 60))
    first = sample("train", 0, CONFIG, want_image=False)
    assert texts[:2] == [first.question.text, first.response.text]


def test_a_rare_answer_is_found_beyond_the_scenes_of_a_sample():
    world = WorldConfig(prior_strength=0.9)
    found = [sample("test-inverted", k, world, "colour", want_image=False) for k in range(60)]
    assert all(s.question.answer == s.answer and s.scene.objects for s in found)
    further = [s for s in found if s.scene.seed not in SPLIT_SEEDS.values()]
    assert [s.answer for s in further] == ["orange"]  # no shape's usual colour
    own = {s.scene.seed for s in found if s not in further}
    assert own == {SPLIT_SEEDS["test-inverted"]}


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(UsageError, match="split"):
        sample("dev", 0, CONFIG)
    with pytest.raises(UsageError, match="relation"):
        sample("train", 0, WorldConfig(max_objects=1), "relation", want_image=False)
