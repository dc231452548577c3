"""The data of the demos: tiles of photographs, and drawn scenes with captions."""
