"""What the package offers by name."""

from mar_snn import neurons


def test_the_package_offers_these_names():
    assert neurons.__all__ == [
        "ATMNCoder",
        "ATMNNode",
        "LIFCoder",
        "SpikeEvent",
        "TernarySpikeCompressor",
        "as_binary_planes",
        "listen_to_spikes",
        "record_spikes",
        "replace_neurons",
        "ternary_rules",
        "warn_about_binary_tools",
    ]
    assert all(getattr(neurons, name).__doc__ for name in neurons.__all__)
