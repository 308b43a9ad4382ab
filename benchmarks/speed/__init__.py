"""Side-by-side timings against learn2learn, each a command: `python -m metazoo.benchmarks.speed.NAME`."""
