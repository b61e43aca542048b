"""Where bars stand, and what is written below them."""

import matplotlib.pyplot as plt
import pytest

from mar_snn.plot_layout import by_site, label_sites, label_tokens, pixels


@pytest.fixture
def ax():
    figure, axes = plt.subplots(figsize=(9, 4))
    yield axes
    plt.close(figure)


def major(ax):
    return [label.get_text() for label in ax.get_xticklabels()]


def minor(ax):
    return [label.get_text() for label in ax.get_xticklabels(minor=True)]


def llamba_names(layers):
    slots = ("mlp.out", "mixer.in", "mlp.in", "mixer.out")
    return [
        f"backbone.layers.{i}.{slot}_neuron" for i in range(layers) for slot in slots
    ]


def test_sites_stand_side_by_side_with_their_layers_in_order():
    places = by_site(reversed(llamba_names(2)), "firing")
    assert [(p.group, p.layer, p.place) for p in places] == [
        ("mixer.in", 0, 0.0),
        ("mixer.in", 1, 1.0),
        ("mixer.out", 0, 3.0),
        ("mixer.out", 1, 4.0),
        ("mlp.in", 0, 6.0),
        ("mlp.in", 1, 7.0),
        ("mlp.out", 0, 9.0),
        ("mlp.out", 1, 10.0),
    ]
    assert places[1].name == "backbone.layers.1.mixer.in_neuron"


def test_layer_ten_stands_behind_layer_nine():
    names = [f"layers.{i}.mlp.in_neuron" for i in (10, 9)]
    assert [p.layer for p in by_site(names, "firing")] == [9, 10]


def test_other_names_are_groups_of_their_own_in_the_order_given():
    names = ["net.3", "1", "layers.x.mlp.in_neuron", "layers.0.mlp.in_neuron"]
    places = by_site(names, "firing")
    assert [(p.group, p.layer, p.place) for p in places] == [
        ("mlp.in", 0, 0.0),
        ("net.3", None, 2.0),
        ("1", None, 4.0),
        ("layers.x.mlp.in_neuron", None, 6.0),
    ]


def test_no_names_are_refused():
    with pytest.raises(ValueError, match="firing holds no neuron: pass a mapping"):
        by_site([], "firing")


def test_layer_numbers_stand_over_the_names_of_sites(ax):
    label_sites(ax, by_site(llamba_names(3), "firing"))
    assert major(ax) == ["0", "1", "2"] * 4
    assert minor(ax) == ["mixer.in", "mixer.out", "mlp.in", "mlp.out"]
    # the name of a site is at its middle layer
    assert list(ax.get_xticks(minor=True)) == [1.0, 5.0, 9.0, 13.0]
    assert ax.get_xlabel() == "layer and site"


def test_many_layers_are_numbered_sparsely(ax):
    # 64 bars, 40 numbers at most: every second layer
    label_sites(ax, by_site(llamba_names(16), "firing"))
    assert major(ax) == [str(i) for i in range(0, 16, 2)] * 4


def test_neurons_without_layers_have_names_only(ax):
    label_sites(ax, by_site(["1", "3"], "firing"))
    assert major(ax) == []
    assert minor(ax) == ["1", "3"]
    assert ax.get_xlabel() == "neuron"
    assert {label.get_rotation() for label in ax.get_xticklabels(minor=True)} == {0.0}


def test_long_names_are_turned(ax):
    label_sites(ax, by_site([f"encoder.block.{i}.neuron" for i in range(9)], "firing"))
    assert {label.get_rotation() for label in ax.get_xticklabels(minor=True)} == {90.0}


def test_a_token_stands_at_the_middle_of_its_steps(ax):
    ax.set(xlim=(-0.5, 11.5), ylim=(-0.5, 4.5))
    label_tokens(ax, ["a", "b", "c"], 4)
    # steps 0..3 have their middle at 1.5
    assert list(ax.get_xticks()) == [1.5, 5.5, 9.5]
    assert major(ax) == ["a", "b", "c"]
    (separators,) = ax.collections
    assert [line[0][0] for line in separators.get_segments()] == [3.5, 7.5]
    assert ax.get_xlabel() == "time (4 steps each)"
    assert ax.get_xticklabels()[0].get_rotation() == 0.0


def test_dollars_in_a_token_are_not_mathematics(ax):
    label_tokens(ax, ["$x$", "y"], 2)
    assert not any(label.get_parse_math() for label in ax.get_xticklabels())
    ax.figure.canvas.draw()


def test_many_tokens_are_turned_and_thinned_out(ax):
    tokens = [f"token{i}" for i in range(200)]
    label_tokens(ax, tokens, 2)
    # 9 inches of figure leave 6.975 of axes: 45 lines of 11 points, every fifth token
    assert pixels(ax)[0] == 697
    assert major(ax) == tokens[::5]
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {90.0}
    (separators,) = ax.collections
    assert len(separators.get_segments()) == 39


def test_axes_without_room_still_count_as_a_pixel():
    figure = plt.figure()
    assert pixels(figure.add_axes((0.5, 0.5, 0.0, 0.0))) == (1, 1)
    plt.close(figure)
