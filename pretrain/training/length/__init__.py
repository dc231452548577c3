"""How long a run is: steps, epochs or minutes, known before the first step."""
