"""The commands of `stillhouse`, a room for each kind."""
