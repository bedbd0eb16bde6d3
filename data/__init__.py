"""From annotations and feature files to arrays in memory, and the demo world. Imports common and uwav."""
