"""Geometry statistics against closed forms."""

import itertools

import numpy as np
import pytest
from scipy.special import i0

from peregrine.diagnostics import geometry
from peregrine.diagnostics.collapse import spectrum
from peregrine.diagnostics.matrices import correlation_picture, plane, shown, similarity_picture


def report_of(x, **more):
    return geometry.geometry_report(x, spectrum(x), **more)


HADAMARD = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], float)
"""Its columns after the first are centred and at right angles."""


def test_alpha_is_the_exponent_of_a_power_law():
    rank = np.arange(1, 151.0)
    for alpha in (0.0, 1.0, 2.5):
        singular = rank ** (-alpha / 2)
        assert geometry.alpha_req(singular, 0.0) == (pytest.approx(alpha, abs=1e-12), 97)
        # Only ranks 4 to 100 count, and no unit does.
        singular[:3], singular[100:] = 1e3, 1e-9
        assert geometry.alpha_req(7 * singular, 0.0)[0] == pytest.approx(alpha, abs=1e-12)


def test_alpha_weighs_rank_j_by_one_over_j():
    singular = np.array([9.0, 8, 7, 5, 2, 1.5, 0.1])
    rank = np.arange(4, 8.0)
    # polyfit squares its weights.
    slope, _ = np.polyfit(np.log(rank), np.log(singular[3:] ** 2), 1, w=rank**-0.5)
    assert geometry.alpha_req(singular, 0.0) == (pytest.approx(-slope, rel=1e-12), 4)
    # What rounding leaves is no direction.
    slope, _ = np.polyfit(np.log(rank[:3]), np.log(singular[3:6] ** 2), 1, w=rank[:3] ** -0.5)
    assert geometry.alpha_req(singular, 0.2) == (pytest.approx(-slope, rel=1e-12), 3)


def test_alpha_is_undefined_where_nothing_or_too_little_varies():
    assert geometry.alpha_req(np.ones(5), 0.0) == (None, 2)
    assert geometry.alpha_req(spectrum(np.full((9, 20), 3.0)), 1e-6) == (None, 0)
    x = np.random.default_rng(0).normal(size=(8, 50))  # n < d: 7 directions, 4 to 7
    assert report_of(x)["alpha_req_points"] == 4


def test_offdiagonal_by_hand():
    a, b, c = HADAMARD[:, 1:].T
    assert geometry.offdiagonal(np.column_stack([a, b, c])) == pytest.approx(0, abs=1e-30)
    assert geometry.offdiagonal(np.column_stack([a, -3 * a + 7])) == pytest.approx(1)
    # Of three pairs one is wholly correlated; a + b has correlation sqrt(1/2) with a.
    assert geometry.offdiagonal(np.column_stack([a, a, c])) == pytest.approx(1 / 3)
    assert geometry.offdiagonal(np.column_stack([a, a + b])) == pytest.approx(1 / 2)
    assert geometry.offdiagonal(a[:, None]) is None


def test_a_coordinate_that_does_not_vary_does_not_read_as_decorrelated():
    a, b, _ = HADAMARD[:, 1:].T
    constant = np.full(4, 0.1)
    assert geometry.offdiagonal(np.column_stack([a, b, constant])) == pytest.approx(2 / 3)
    for x in (np.full((30, 5), 0.1), np.full((30, 5), -3e4, np.float32), np.ones((1, 5))):
        assert geometry.offdiagonal(x) == 1.0
    rounding = 1 + np.random.default_rng(0).uniform(-1, 1, (50, 5)) * 2.0**-25
    assert geometry.offdiagonal(rounding) == 1.0


def test_offdiagonal_of_independent_coordinates_and_of_random_codes():
    draw = np.random.default_rng(0)
    report = report_of(draw.normal(size=(50, 200)))
    # 19,900 squared correlations of mean 1/49 and sd about sqrt(2)/49: .0002 for their mean.
    assert report["offdiagonal_chance"] == 1 / 49
    assert report["offdiagonal"] == pytest.approx(1 / 49, abs=0.001)
    # Twelve images on each of 64 random codes: as correlated as 64 codes, not as 768 images.
    codes = np.repeat(np.arange(64), 12)
    signs = draw.integers(2, size=(64, 100)) * 2.0 - 1
    report = report_of(signs[codes], codes=codes)
    assert report["offdiagonal_codes"] == 1 / 63
    assert report["offdiagonal"] == pytest.approx(1 / 63, abs=0.001)


def test_contrast_by_hand():
    e = np.eye(3)
    blocks, groups = e[[0, 0, 1, 1, 2, 2]] * [[1], [5], [2], [2], [1], [3]], [4, 4, 7, 7, 9, 9]
    assert geometry.contrast(blocks, groups) == pytest.approx(1)
    assert geometry.contrast([[1.0], [1], [-1], [-1]], [0, 0, 1, 1]) == pytest.approx(2)
    assert geometry.contrast(np.ones((6, 3)), groups) == pytest.approx(0, abs=1e-12)
    # Within: 0 and 0; between: 1 twice of four, so -1/2.
    assert geometry.contrast(e[[0, 1, 0, 1]], [0, 0, 1, 1]) == pytest.approx(-1 / 2)
    assert geometry.contrast(e, [0, 1, 2]) is None
    assert geometry.contrast(e, [5, 5, 5]) is None
    assert geometry.contrast(e[:1], [5]) is None


def test_contrast_is_zero_on_average_over_all_groupings():
    x = np.random.default_rng(0).normal(size=(6, 3))
    groupings = set(itertools.permutations([0, 0, 0, 1, 1, 2]))
    values = [geometry.contrast(x, groups) for groups in groupings]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    assert np.std(values) > 0.1


def test_alignment_by_hand():
    turn = np.deg2rad(60)
    a = np.array([[1.0, 0], [0, 2]])
    b = 3 * a @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matched, chance = geometry.alignment(a, b)
    assert matched == pytest.approx(2 - 2 * np.cos(turn))
    # The other pairs lie 60 - 90 = -30 and 60 + 90 = 150 degrees apart.
    expected = 2 - np.cos(np.deg2rad(30)) - np.cos(np.deg2rad(150))
    assert chance == pytest.approx(expected)
    assert geometry.alignment(a, a) == (0, pytest.approx(2))
    assert geometry.alignment(a, -a)[0] == pytest.approx(4)
    assert geometry.alignment(a[:1], b[:1]) == (pytest.approx(1), None)
    with pytest.raises(ValueError, match="b: shape"):
        geometry.alignment(a, a[:1])


def test_a_constant_is_aligned_at_its_chance_level():
    x = np.full((5, 3), 0.3)
    assert geometry.alignment(x, x) == (0, pytest.approx(0, abs=1e-12))
    assert geometry.uniformity(x) == pytest.approx(0, abs=1e-12)


def test_uniformity_by_hand(monkeypatch):
    assert geometry.uniformity(np.eye(2)) == pytest.approx(-4)
    assert geometry.uniformity([[3.0, 0], [-1, 0]]) == pytest.approx(-8)
    # Three points: one pair together, two pairs opposite.
    expected = np.log((1 + 2 * np.exp(-8)) / 3)
    assert geometry.uniformity([[1.0], [2.0], [-1.0]]) == pytest.approx(expected)
    assert geometry.uniformity([[1.0, 2.0]]) is None
    x = np.random.default_rng(0).normal(size=(23, 4))
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((u - v) ** 2).sum()) for u, v in itertools.combinations(rows, 2)]
    monkeypatch.setattr(geometry, "ROWS", 7)
    assert geometry.uniformity(x) == pytest.approx(np.log(np.mean(pairs)), rel=1e-12)


def test_the_floor_of_uniformity_is_the_sphere():
    # On two points exp(-8) for half of the pairs; on the circle and the sphere known integrals.
    assert geometry.uniformity_floor(1) == pytest.approx(np.log((1 + np.exp(-8)) / 2))
    assert geometry.uniformity_floor(2) == pytest.approx(np.log(i0(4)) - 4)
    assert geometry.uniformity_floor(3) == pytest.approx(np.log(np.sinh(4) / 4) - 4)
    assert geometry.uniformity_floor(10**6) == pytest.approx(-4, abs=1e-4)
    x = np.random.default_rng(0).normal(size=(1500, 16))
    assert geometry.uniformity(x) == pytest.approx(geometry.uniformity_floor(16), abs=0.01)


def test_the_report_holds_what_it_was_given():
    draw = np.random.default_rng(0)
    x, codes, labels = draw.normal(size=(40, 6)), np.arange(40) % 8, np.arange(40) % 4
    views = draw.normal(size=(2, 20, 6))
    report = report_of(x, labels=labels, codes=codes, views=views)
    assert report["class_contrast"] == geometry.contrast(x, labels)
    assert report["code_contrast"] == geometry.contrast(x, codes)
    assert report["offdiagonal_codes"] == 1 / 7
    assert (report["alignment"], report["alignment_chance"]) == geometry.alignment(*views)
    both = geometry.uniformity(views[0]), geometry.uniformity(views[1])
    assert report["uniformity"] == pytest.approx(sum(both) / 2)
    assert report["uniformity_floor"] == geometry.uniformity_floor(6)
    alone = {"alpha_req", "alpha_req_points", "offdiagonal", "offdiagonal_chance"}
    assert set(report_of(x)) == alone
    one = report_of(x[:1], labels=labels[:1], codes=codes[:1], views=views[:, :1])
    undefined = {key for key, value in one.items() if value is None}
    assert undefined == {
        "alpha_req",
        "offdiagonal_chance",
        "offdiagonal_codes",
        "class_contrast",
        "code_contrast",
        "alignment_chance",
        "uniformity",
    }


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_in_one_line(bad):
    x = np.ones((4, 3))
    x[2, 1] = bad
    for function in (
        geometry.offdiagonal,
        geometry.uniformity,
        lambda x: geometry.geometry_report(x, np.ones(3)),
        correlation_picture,
        lambda x: geometry.alignment(np.ones((4, 3)), x),
        lambda x: geometry.contrast(x, [0, 0, 1, 1]),
        lambda x: similarity_picture(x, np.arange(4)),
    ):
        with pytest.raises(ValueError, match=r"1 of 12 values .* row 2, column 1"):
            function(x)


def test_pictures_are_small_and_rounded():
    x = np.random.default_rng(0).normal(size=(30, 96))
    picture = correlation_picture(x)
    assert (picture.shape, picture.dtype) == ((48, 48), np.float32)
    np.testing.assert_allclose(picture, np.corrcoef(x[:, ::2].T), atol=0.0005001)
    np.testing.assert_array_equal(picture, picture.astype(float).round(3).astype(np.float32))
    assert correlation_picture(x[:, :5]).shape == (5, 5)
    cosines = similarity_picture([[1.0, 0], [0, 4], [1, 1]], np.array([2, 0]))
    np.testing.assert_allclose(cosines, [[1, 0.707], [0.707, 1]], atol=1e-6)


def test_the_picture_shows_five_images_of_ten_classes_by_class_and_code():
    labels = np.arange(144) % 12
    picks = shown(labels, None)
    assert picks.tolist() == [12 * i + label for label in range(10) for i in range(5)]
    codes = np.arange(144)[::-1].copy()
    assert shown(labels, codes)[:5].tolist() == [48, 36, 24, 12, 0]
    assert shown(np.array([3, 3, 8]), None).tolist() == [0, 1, 2]


def test_a_map_shows_the_two_widest_directions():
    # Unit rows +-e1 (4 each), +-e2 (2 each), +-e3 (1 each): mean 0, variances 8, 4 and 2 of 14.
    rows = np.repeat(np.vstack([np.eye(3), -np.eye(3)]), [4, 2, 1, 4, 2, 1], axis=0)
    lengths = np.linspace(0.5, 3, len(rows))[:, None]
    turned = lengths * rows @ np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]])
    picks = np.arange(14)
    points, share = plane(turned, picks)
    assert share == pytest.approx([8 / 14, 4 / 14], abs=5e-4)
    expected = np.abs(rows[:, :2])
    assert np.abs(points) == pytest.approx(expected, abs=5e-4)
    assert (points[:4] == points[0]).all() and (points[7:11] == -points[0]).all()
    again, _ = plane(np.vstack([turned, 100 * turned]), picks)
    assert (again == points).all()  # rows that are not picked do not matter


def test_the_largest_coordinate_of_a_map_is_positive():
    x = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    # Along (1, -1) / sqrt(2) from the mean (3/4, 1/4): three at sqrt(2)/4, one at -3 sqrt(2)/4.
    expected = np.array([-1, -1, -1, 3]) * np.sqrt(2) / 4
    for rows in (x, -x):
        points, share = plane(rows, np.arange(4))
        assert points[:, 0] == pytest.approx(expected, abs=5e-4)
        assert share == pytest.approx([1, 0], abs=5e-4)


@pytest.mark.parametrize("x", [np.ones((5, 3)), np.zeros((5, 3)), np.full((5, 1), 2.0)])
def test_a_map_of_a_constant_is_one_point(x):
    points, share = plane(x, np.arange(5))
    assert points.shape == (5, 2) and not points.any() and not share.any()
