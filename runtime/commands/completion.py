"""``mri-edge completion``: the script by which a shell completes commands, options and their values."""

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

    Models, artefacts of the model, engines and providers are completed too.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click knows the shells that are offered"  # noqa: S101
    click.echo(kind(ctx.find_root().command, {}, "mri-edge", "_MRI_EDGE_COMPLETE").source())
