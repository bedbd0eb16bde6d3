"""The statistics, pictures and HTML of a report. Imports common and uwav."""
