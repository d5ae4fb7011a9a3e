"""``mri-edge completion``: print the script that makes a shell complete commands, options and values."""

from __future__ import annotations

import click

EXAMPLES = """\b
Examples:
  bash  echo 'eval "$(mri-edge completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(mri-edge completion zsh)"' >> ~/.zshrc
  fish  mri-edge completion fish > ~/.config/fish/completions/mri-edge.fish
"""


@click.command(epilog=EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    It also completes models, artifacts, engines and providers.
    """
    from click.shell_completion import get_completion_class

    script_class = get_completion_class(shell)
    assert script_class is not None, "click supports all offered shells"  # noqa: S101
    click.echo(script_class(ctx.find_root().command, {}, "mri-edge", "_MRI_EDGE_COMPLETE").source())
