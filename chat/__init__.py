"""The chat: a local page over `hsd`, and the store and worker behind it."""
