from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from la_trt.lookworld import COLOURS, Object, WorldConfig, generate_scene, render
from la_trt.lookworld.scene import BASE_RGB, Scene

CLEAN = WorldConfig(noise_prob=0, jpeg_prob=0, blur_prob=0, digit_frac=0)
UGLY = WorldConfig(
    sizes=((224, 224), (308, 112)), noise_prob=1, jpeg_prob=1, blur_prob=1, clutter=1
)


def _nearest_colour(rgb) -> str:
    distances = [np.abs(np.array(BASE_RGB[c]) - rgb).sum() for c in COLOURS]
    return COLOURS[int(np.argmin(distances))]


def test_the_pixel_at_a_centre_has_the_objects_colour():
    for index in range(60):
        scene = generate_scene(1, index, CLEAN)
        pixels = np.asarray(render(scene)).astype(int)
        assert pixels.shape == (scene.height, scene.width, 3)
        for o in scene.objects:
            rgb = pixels[int(o.cy), int(o.cx)]
            assert tuple(rgb) == o.rgb
            assert _nearest_colour(rgb) == o.colour
        assert tuple(pixels[0, 0]) == scene.background or any(
            o.cx < 30 and o.cy < 30 for o in scene.objects
        )


def test_colours_survive_noise_blur_and_jpeg():
    num = wrong = 0
    for index in range(60):
        scene = generate_scene(2, index, replace(UGLY, digit_frac=0))
        pixels = np.asarray(render(scene)).astype(int)
        for o in scene.objects:
            y, x = int(o.cy), int(o.cx)
            patch = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(axis=0)
            num += 1
            wrong += _nearest_colour(patch) != o.colour
    assert num > 100 and wrong == 0


@pytest.mark.parametrize("config", [CLEAN, UGLY])
def test_rendering_is_deterministic(config):
    for index in range(19):
        scene = generate_scene(3, index, config)
        assert render(scene).tobytes() == render(scene).tobytes()


def _alone(shape: str, *, digit: int | None = None, cx: float = 60.0, angle: float = 0.0) -> Scene:
    scene = generate_scene(1, 0, CLEAN)
    thing = Object(shape, "red", "large", digit, cx, 61.0, 40.0, angle, (212, 38, 40))
    return replace(scene, width=140, height=112, objects=(thing,))


def _ink(scene: Scene):
    return np.any(np.asarray(render(scene)) != np.array(scene.background), axis=2)


def test_shapes_differ_and_stay_in_their_circle():
    areas = {}
    for shape in ("circle", "square", "triangle", "star"):
        scene = _alone(shape)
        ink = _ink(scene)
        o = scene.objects[0]
        ys, xs = np.nonzero(ink)
        assert np.hypot(xs + 0.5 - o.cx, ys + 0.5 - o.cy).max() <= o.radius_px + 1
        areas[shape] = int(ink.sum())
    # pi 20^2; 2 * 24.8^2; 3 sqrt(3) / 4 * 24^2; a star is the thinnest; edges count as ink.
    for shape, area in {"circle": 1257, "square": 1230, "triangle": 748, "star": 846}.items():
        assert area <= areas[shape] <= area * 1.15, areas


def test_edges_are_anti_aliased_and_follow_the_position():
    here, there = (np.asarray(render(_alone("circle", cx=cx))).astype(int) for cx in (60.0, 60.5))
    assert np.any(here != there)
    for image, cx in ((here, 60.0), (there, 60.5)):
        ink = 255 - image[:, :, 1]
        ink = np.where(ink > 60, ink, 0)
        xs = np.arange(140) + 0.5
        assert abs((ink.sum(axis=0) * xs).sum() / ink.sum() - cx) < 0.3
    shades = {tuple(p) for p in here.reshape(-1, 3)}
    assert len(shades) > 8


def test_ten_digits_are_ten_pictures_in_a_contrasting_ink():
    plain = np.asarray(render(_alone("circle"))).astype(int)
    pictures = []
    for digit in range(10):
        image = np.asarray(render(_alone("circle", digit=digit))).astype(int)
        changed = np.any(image != plain, axis=2)
        assert 40 < changed.sum() < 500
        ys, xs = np.nonzero(changed)
        assert abs(ys.mean() - 60.5) < 3 and abs(xs.mean() - 59.5) < 3
        assert image[changed].max(axis=0).min() > 240
        pictures.append(changed)
    for k, a in enumerate(pictures):
        for b in pictures[:k]:
            assert (a != b).sum() > 12


def test_clutter_draws_on_the_background():
    scene = generate_scene(6, 0, CLEAN)
    assert scene.strokes == 0
    cluttered = replace(scene, strokes=8)
    assert np.any(np.asarray(render(scene)) != np.asarray(render(cluttered)))
