"""The entry point of the program, also as ``python -m mri_edge``."""

from __future__ import annotations


def main() -> None:
    """Run a command. Ctrl-C while the command line is loaded ends the program silently."""
    try:
        from .cli import main as run_command

        run_command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # 128 + SIGINT, as in shells


if __name__ == "__main__":
    main()
