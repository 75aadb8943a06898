"""What a person sees: documents drawn for a terminal. Nothing here asks a server for anything."""
