"""Energy that sensors measured, kept apart from all that is modelled."""
