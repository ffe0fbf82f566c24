"""A trained network in exchange formats, with a card that says what it is."""
