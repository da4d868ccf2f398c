"""Views of things at rest and the actions between them: offline data for world models, no simulator to step."""
