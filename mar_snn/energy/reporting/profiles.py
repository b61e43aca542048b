"""Energy profiles by name: those that are shipped, and those of the user."""

from mar_snn.energy.reporting.prices import EnergyProfile, MemoryTier, Price
from mar_snn.energy.reporting.technologies import TECHNOLOGIES

__all__ = [
    "EnergyProfile",
    "MemoryTier",
    "Price",
    "available_profiles",
    "get_profile",
    "register_profile",
]

_profiles: dict[str, EnergyProfile] = {
    profile.name: profile for profile in TECHNOLOGIES
}


def register_profile(profile: EnergyProfile) -> EnergyProfile:
    """`profile`, known by its name from now on.

    Raises:
        ValueError: where the name is taken.
    """
    if profile.name in _profiles:
        raise ValueError(
            f"a profile named {profile.name!r} exists; give yours another name"
        )
    _profiles[profile.name] = profile
    return profile


def get_profile(profile: str | EnergyProfile) -> EnergyProfile:
    """The profile of that name; a profile is returned as it is.

    Raises:
        ValueError: for an unknown name.
    """
    if isinstance(profile, EnergyProfile):
        return profile
    if profile not in _profiles:
        raise ValueError(
            f"no energy profile is named {profile!r}; choose from "
            f"{', '.join(available_profiles())}, or register_profile your own"
        )
    return _profiles[profile]


def available_profiles() -> list[str]:
    """The names that `get_profile` knows."""
    return sorted(_profiles)
