"""The janus-jax command line: one file per subcommand, dispatched by main.py."""
